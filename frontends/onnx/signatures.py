"""What the ONNX schemas say of a node, checked before the node is imported.

One check for every operator: number of operands and results, operands that may not be absent,
attribute names and types, element types. It refuses what ONNX Runtime refuses when it loads a
model, so that importers may rely on it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import onnx
from onnx import AttributeProto, TensorProto
from onnx.defs import OpSchema

from regraft.frontends.onnx.text_fields import is_named_freely
from regraft.frontends.onnx.types import DTYPES
from regraft.ir.graph import Value
from regraft.ir.types import DType

RUNTIME_OPERATORS = frozenset(
    {
        "Affine",
        "Crop",
        "DisentangledAttention_TRT",
        "DynamicSlice",
        "EfficientNMS_TRT",
        "GRUUnit",
        "GivenTensorFill",
        "ImageScaler",
        "MemcpyFromHost",
        "MemcpyToHost",
        "MultilevelCropAndResize_TRT",
        "ParametricSoftplus",
        "PyramidROIAlign_TRT",
        "Scale",
        "ScaledTanh",
        "SimplifiedLayerNormalization",
    }
)
"""Operators that ONNX Runtime 1.31 has in the standard domain and ONNX has not."""

_ANY_ATTRIBUTE = frozenset({"LayerNormalization"})
"""Operators that ONNX Runtime defines by itself, so that it leaves unknown attributes alone."""

_TYPES: Mapping[str, DType] = {
    f"tensor({name.lower()})": DTYPES[code]
    for name, code in TensorProto.DataType.items()
    if code in DTYPES
}


@dataclass(frozen=True, slots=True)
class Signature:
    """A schema, prepared for checking many nodes.

    Attributes:
        operands: Least and largest number of operands.
        results: Least and largest number of results.
        required: Positions of the operands that must be present.
        types: Per formal operand: the type parameter that it shares with others (None where it
            stands alone) and the allowed element types (None where it may be no tensor).
        attributes: Type of every attribute.
        mandatory: Attributes without a default.
    """

    operands: tuple[int, int]
    results: tuple[int, int]
    required: tuple[int, ...]
    types: tuple[tuple[str | None, frozenset[DType] | None], ...]
    attributes: Mapping[str, int]
    mandatory: tuple[str, ...]

    def problem(
        self, proto: onnx.NodeProto, inputs: Sequence[Value | None]
    ) -> tuple[str, str | None] | None:
        """Returns what is wrong with a node and a hint, or None."""
        num_inputs, num_outputs = len(inputs), len(proto.output)
        if not self.operands[0] <= num_inputs <= self.operands[1]:
            return f"has {num_inputs} operands, expected {_range(self.operands)}", None
        if not self.results[0] <= num_outputs <= self.results[1]:
            return f"has {num_outputs} results, expected {_range(self.results)}", None
        for i in self.required:
            if i < num_inputs and not proto.input[i]:
                return f"operand {i} is absent, but it is not optional", None
        return self._attribute_problem(proto) or self._type_problem(inputs)

    def _attribute_problem(self, proto: onnx.NodeProto) -> tuple[str, str | None] | None:
        given = set()
        for attr in proto.attribute:
            name = attr.name
            wanted = self.attributes.get(name)
            if wanted is None:
                if is_named_freely(proto):
                    return None
                # ONNX keeps names with underscores for private notes
                if name.startswith("__") or proto.op_type in _ANY_ATTRIBUTE:
                    continue
                close = difflib.get_close_matches(name, self.attributes, n=1)
                return f"unknown attribute `{name}`", (
                    f"did you mean `{close[0]}`?" if close else _list(self.attributes)
                )
            if attr.type != wanted:
                return (
                    f"attribute `{name}` is of type {_type_name(attr.type)}, "
                    f"expected {_type_name(wanted)}"
                ), None
            given.add(name)
        for name in self.mandatory:
            if name not in given:
                return f"attribute `{name}` is missing", None
        return None

    def _type_problem(self, inputs: Sequence[Value | None]) -> tuple[str, str | None] | None:
        bound: dict[str, DType] = {}
        last = len(self.types) - 1
        for i, value in enumerate(inputs):
            dtype = None if value is None else value.dtype
            if dtype is None:
                continue
            group, allowed = self.types[min(i, last)]
            if allowed is not None and dtype not in allowed:
                names = sorted(map(str, allowed))
                return f"operand {i} is {dtype}, expected one of {', '.join(names)}", None
            if group is not None and bound.setdefault(group, dtype) is not dtype:
                return (
                    f"operand {i} is {dtype}, another operand of the same type is {bound[group]}",
                    "ONNX does not convert element types implicitly: a Cast is missing",
                )
        return None


@cache
def signature(domain: str, op_type: str, opset: int) -> Signature | None:
    """Returns the signature of an operator at an opset, None when ONNX does not define it."""
    try:
        schema = onnx.defs.get_schema(op_type, max_inclusive_version=opset or 1, domain=domain)
    except onnx.defs.SchemaError:
        return None
    options = [formal.option for formal in schema.inputs]
    attributes = schema.attributes
    return Signature(
        (schema.min_input, schema.max_input),
        (schema.min_output, schema.max_output),
        tuple(i for i, o in enumerate(options) if o is OpSchema.FormalParameterOption.Single),
        tuple(_formal(formal) for formal in schema.inputs) or ((None, None),),
        {
            name: int(attr.type.value)  # type: ignore[attr-defined]  # an enum of the binding
            for name, attr in attributes.items()
        },
        tuple(name for name, attr in attributes.items() if attr.required),
    )


def later_opset(
    proto: onnx.NodeProto, domain: str, opset: int, inputs: Sequence[Value | None]
) -> int | None:
    """Returns the first opset above `opset` whose definition allows a node, None without one.

    PyTorch's TorchScript exporter writes a `Min` of i64 at opset 11, say (the buckets of T5's
    relative positions): ONNX has it from 12 on, and ONNX Runtime does not load the file either.
    """
    versions = sorted(
        schema.since_version
        for schema in onnx.defs.get_all_schemas_with_history()
        if (schema.domain, schema.name) == (domain, proto.op_type) and schema.since_version > opset
    )
    for version in versions:
        known = signature(domain, proto.op_type, version)
        if known is not None and known.problem(proto, inputs) is None:
            return version
    return None


def suggestion(op_type: str) -> str:
    """Returns a hint for an operator that ONNX does not define."""
    names = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    close = difflib.get_close_matches(op_type, sorted(names), n=1)
    if close:
        return f"did you mean `{close[0]}`?"
    return "operators of one's own belong to a domain of one's own"


def is_unknown(domain: str, op_type: str) -> bool:
    """Returns whether no version of the standard domain, and no runtime, has the operator."""
    if domain or op_type in RUNTIME_OPERATORS:
        return False
    return not onnx.defs.has(op_type)


def _formal(
    formal: OpSchema.FormalParameter,
) -> tuple[str | None, frozenset[DType] | None]:
    names = formal.types
    allowed = frozenset(_TYPES[name] for name in names if name in _TYPES)
    # a value of unknown kind has no element type to compare; others may be sequences, say
    tensors_only = all(name.startswith("tensor(") for name in names)
    shared = formal.is_homogeneous and not formal.type_str.startswith("tensor(")
    return (
        formal.type_str if shared and tensors_only else None,
        allowed if tensors_only else None,
    )


def _range(limits: tuple[int, int]) -> str:
    least, largest = limits
    if least == largest:
        return str(least)
    return f"{least} or more" if largest > 1 << 20 else f"{least} to {largest}"


def _list(names: Mapping[str, int]) -> str:
    return f"it has {', '.join(sorted(names))}" if names else "it has no attributes"


def _type_name(type_: int) -> str:
    return str(AttributeProto.AttributeType.Name(type_))
