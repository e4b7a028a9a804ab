"""The opset at which an operator takes half precision: ONNX added bf16 to many operators late."""

from __future__ import annotations

import re
from functools import cache

from onnx import defs

from regraft.backends.onnx.emitter import MIN_OPSET
from regraft.ir.graph import Node
from regraft.ir.types import DType

_NAMES = {DType.F16: "tensor(float16)", DType.BF16: "tensor(bfloat16)"}
_FLOATS = {"tensor(float)", "tensor(float16)"}
_SOURCE = re.compile(r"ONNX (\w+)-\d+")


def least_opset_of_types(node: Node) -> int:
    """Returns the least opset whose schema of the node's operator takes its half-precision type.

    The lowest opset for nodes of other types, and for operators that older opsets spell by their
    body.
    """
    dtypes = {value.dtype for value in (*node.inputs, *node.outputs) if value is not None}
    half = DType.BF16 if DType.BF16 in dtypes else DType.F16
    if half not in dtypes:
        return MIN_OPSET
    match = _SOURCE.match(node.op.source)
    return MIN_OPSET if match is None else _least(match[1], _NAMES[half])


@cache
def _least(op_type: str, type_name: str) -> int:
    takes: dict[int, bool] = {}
    for schema in defs.get_all_schemas_with_history():
        if schema.name == op_type and not schema.domain:
            # parameters of a type that may be half are those that take f16 next to f32
            params = [p for p in (*schema.inputs, *schema.outputs) if set(p.types) >= _FLOATS]
            takes[schema.since_version] = all(type_name in p.types for p in params)
    current = max((since for since in takes if since <= MIN_OPSET), default=None)
    if current is None or takes[current]:
        return MIN_OPSET
    later = [since for since, ok in takes.items() if ok and since > MIN_OPSET]
    return min(later, default=MIN_OPSET)
