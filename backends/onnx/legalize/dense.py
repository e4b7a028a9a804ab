"""Forms around the residual stream: norms after a sum, GELU after a bias.

Linear layers have one form: matrices in reshapes (Gemm) gained at most 2.3 % from 128 rows on and
took up to 1.24x of MatMul and Add below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regraft.backends.onnx import ort_ops
from regraft.backends.onnx.legalize.costs import Features
from regraft.backends.onnx.legalize.site import Build, Limits
from regraft.ir.builder import Builder
from regraft.ir.constants import is_constant
from regraft.ir.dims import DimLike, product
from regraft.ir.graph import Node, Value
from regraft.ir.ops import activation, arithmetic, norm
from regraft.ir.opspec import OpSpec
from regraft.ir.types import DType

_ROWS: tuple[int, ...] = (16, 64, 128, 256, 512)


def _is_plain_sum(value: Value | None) -> Node | None:
    """Returns the node of x + y where both have the sum's shape, or None."""
    node = None if value is None else value.producer
    if node is None or node.op is not arithmetic.add or value is None or value.shape is None:
        return None
    if any(x is None or x.shape != value.shape for x in node.inputs):
        return None
    return node


def _dense_sizes(value: Value, limits: Limits) -> dict[str, tuple[int, ...]] | None:
    """Returns rows and width of a tensor whose last axis is the width."""
    shape = value.shape
    if shape is None or len(shape) < 2 or not isinstance(shape[-1], int):
        return None
    rows: DimLike = product(shape[:-1])
    return {"rows": limits.sizes(rows, _ROWS), "width": (shape[-1],)}


@dataclass(frozen=True, slots=True)
class ResidualNormSite:
    """A layer or RMS norm of a sum; two operators are the standard form."""

    name: str = "residual_norm"
    roots: tuple[OpSpec, ...] = (norm.layer_norm, norm.rms_norm)

    def features(self, node: Node, limits: Limits) -> Features | None:
        """Returns the kind of norm, its rows and width."""
        x = node.inputs[0]
        total = _is_plain_sum(x)
        if x is None or total is None or x.rank not in (2, 3) or x.dtype is not DType.F32:
            return None
        if node.attrs["axis"] != -1 or any(v.num_uses for v in node.outputs[1:]):
            return None
        sizes = _dense_sizes(x, limits)
        return None if sizes is None else Features({"norm": node.op.name}, sizes)

    def forms(self, node: Node, limits: Limits) -> Mapping[str, Build | None]:
        """Returns `separate` and `skip`."""
        return {"separate": None, "skip": lambda b: _skip(node, b)}


def _skip(node: Node, b: Builder) -> Sequence[Value]:
    total = node.inputs[0]
    producer = _is_plain_sum(total)
    if producer is None or total is None:
        raise AssertionError("the norm is not one of a sum")
    is_layer = node.op is norm.layer_norm
    spec = ort_ops.skip_layer_norm if is_layer else ort_ops.skip_rms_norm
    skip = b.node(spec, *producer.inputs, *node.inputs[1:], epsilon=node.attrs["epsilon"])
    for user, idx in list(total.uses):
        if user is not node and isinstance(user, Node) and skip.is_before(user):
            user.set_operand(idx, skip.outputs[1])
    return (skip.outputs[0], *node.outputs[1:])


@dataclass(frozen=True, slots=True)
class GeluSite:
    """A GELU of a product plus a bias; two operators are the standard form."""

    name: str = "gelu"
    roots: tuple[OpSpec, ...] = (activation.gelu,)

    def features(self, node: Node, limits: Limits) -> Features | None:
        """Returns the approximation, rows and width."""
        x = node.inputs[0]
        if x is None or x.num_uses != 1 or _bias_of(x) is None or x.dtype is not DType.F32:
            return None
        sizes = _dense_sizes(x, limits)
        kind = {"tanh": "yes" if node.attrs["tanh"] else "no"}
        return None if sizes is None else Features(kind, sizes)

    def forms(self, node: Node, limits: Limits) -> Mapping[str, Build | None]:
        """Returns `separate` and `bias`."""
        return {"separate": None, "bias": lambda b: _bias_gelu(node, b)}


def _bias_of(value: Value | None) -> tuple[Value, Value] | None:
    """Returns (x, bias) of x + bias with a constant vector, or None."""
    node = None if value is None else value.producer
    if node is None or node.op is not arithmetic.add:
        return None
    for x, bias in (node.inputs[:2], node.inputs[1::-1]):
        if x is None or bias is None or bias.rank != 1 or not is_constant(bias):
            continue
        if x.shape is not None and len(x.shape) > 1 and bias.shape == x.shape[-1:]:
            return x, bias
    return None


def _bias_gelu(node: Node, b: Builder) -> Value:
    found = _bias_of(node.inputs[0])
    if found is None:
        raise AssertionError("the GELU is not one of a sum with a bias")
    return b.op(ort_ops.bias_gelu, *found, tanh=node.attrs["tanh"])
