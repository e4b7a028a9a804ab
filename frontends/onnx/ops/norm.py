"""Importers of normalizations, those fused with a residual sum included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.frontends.onnx.importer import Import, NodeImport, direct
from regraft.ir.graph import Value
from regraft.ir.ops import arithmetic, cast, functions, repeating, reshaping
from regraft.ir.ops import norm as ops
from regraft.ir.ops import response_norm as response
from regraft.ir.types import DType

_STASH = {1: DType.F32, 10: DType.F16, 11: DType.F64, 16: DType.BF16}


def _epsilon(item: NodeImport) -> float:
    value: float = item.attr("epsilon", 1e-5)
    return value


def import_batch_norm(item: NodeImport) -> Sequence[Value | None]:
    """Imports BatchNormalization in inference mode; training stays opaque.

    Before version 7 `is_test` tells the mode, before 14 the number of results, then
    `training_mode`. Before version 9 `spatial=0` normalizes every activation on its own.
    """
    training = item.attr("training_mode", 0) if item.opset >= 14 else len(item.proto.output) > 1
    if training or (item.opset < 7 and not item.attr("is_test", 0)):
        return item.opaque()
    if item.opset < 9 and not item.attr("spatial", 1):
        return [_per_activation(item)]
    return [item.b.op(ops.batch_norm, *item.inputs[:5], epsilon=_epsilon(item))]


def _per_activation(item: NodeImport) -> Value:
    x, scale, bias, mean, var = (item.require(i) for i in range(5))
    b = item.b
    dtype = DType.F32 if x.dtype is None else x.dtype
    shifted = b.op(arithmetic.add, var, b.constant(_epsilon(item), dtype))
    normal = b.op(arithmetic.div, b.op(arithmetic.sub, x, mean), b.op(functions.sqrt, shifted))
    return b.op(arithmetic.add, b.op(arithmetic.mul, normal, scale), bias)


def _channel_norm(item: NodeImport, **attrs: Any) -> Value:
    spec = ops.group_norm if attrs else ops.instance_norm
    return item.b.op(spec, *item.inputs[:3], epsilon=_epsilon(item), **attrs)


def import_group_norm(item: NodeImport) -> Value:
    """Imports GroupNormalization-21: scale and bias per channel."""
    return _channel_norm(item, groups=item.attr("num_groups"))


def import_group_norm_18(item: NodeImport) -> Sequence[Value | None]:
    """Imports GroupNormalization-18, whose scale and bias are per group, repeated per channel."""
    x, groups = item.require(0), item.attr("num_groups")
    if x.shape is None:
        return item.opaque()
    channels = x.shape[1]
    repeated = []
    for idx in (1, 2):
        column = item.b.op(reshaping.reshape, item.require(idx), shape=(groups, 1))
        wide = item.b.op(repeating.expand, column, shape=(groups, channels // groups))
        repeated.append(item.b.op(reshaping.reshape, wide, shape=(channels,)))
    return [item.b.op(ops.group_norm, x, *repeated, groups=groups, epsilon=_epsilon(item))]


def _trailing(item: NodeImport) -> dict[str, Any]:
    """Attributes of a norm over trailing axes; the axis counts from the end where possible."""
    axis, rank = item.attr("axis", -1), item.rank(0)
    if axis >= 0 and rank:
        axis -= rank
    stash = _STASH.get(item.attr("stash_type", 1), DType.F32)
    return {"axis": axis, "epsilon": _epsilon(item), "compute_dtype": stash}


def _as_type(item: NodeImport, value: Value | None, dtype: DType | None) -> Value | None:
    if value is None or dtype is None or value.dtype is None or value.dtype is dtype:
        return value
    return item.b.op(cast.cast, value, dtype=dtype)


def _num_results(item: NodeImport, most: int) -> int:
    return 1 + max((i for i in range(1, most) if item.has_output(i)), default=0)


def import_layer_norm(item: NodeImport) -> Sequence[Value | None]:
    """Imports LayerNormalization; ONNX Runtime has it below version 17 too.

    There the result has the element type of the scale.
    """
    x, scale = item.require(0), item.require(1)
    gain, bias = (_as_type(item, item.input(i), x.dtype) for i in (1, 2))
    results = item.b.multi(
        ops.layer_norm, x, gain, bias, num_outputs=_num_results(item, 3), **_trailing(item)
    )
    return [_as_type(item, results[0], scale.dtype), *results[1:]]


def import_rms_norm(item: NodeImport) -> Sequence[Value | None]:
    """Imports RMSNormalization, and ONNX Runtime's SimplifiedLayerNormalization (two results)."""
    x, scale = item.require(0), item.require(1)
    gain = _as_type(item, scale, x.dtype)
    results = item.b.multi(
        ops.rms_norm, x, gain, num_outputs=_num_results(item, 2), **_trailing(item)
    )
    return [_as_type(item, results[0], scale.dtype), *results[1:]]


def _residual(item: NodeImport, bias_idx: int) -> Value:
    total = item.b.op(arithmetic.add, item.require(0), item.require(1))
    bias = item.input(bias_idx)
    return total if bias is None else item.b.op(arithmetic.add, total, bias)


def import_skip_layer_norm(item: NodeImport) -> Sequence[Value | None]:
    """Imports com.microsoft SkipLayerNormalization as sums and layer_norm."""
    total = _residual(item, 4)
    results = item.b.multi(
        ops.layer_norm,
        total,
        item.require(2),
        item.input(3),
        num_outputs=_num_results(item, 3),
        epsilon=item.attr("epsilon", 1e-12),
    )
    return _with_sum(results, total)


def import_skip_rms_norm(item: NodeImport) -> Sequence[Value | None]:
    """Imports com.microsoft SkipSimplifiedLayerNormalization as sums and rms_norm."""
    total = _residual(item, 3)
    results = item.b.multi(
        ops.rms_norm,
        total,
        item.require(2),
        num_outputs=2 if item.has_output(2) else 1,
        epsilon=item.attr("epsilon", 1e-12),
    )
    return _with_sum([results[0], None, *results[1:]], total)


def _with_sum(results: Sequence[Value | None], total: Value) -> Sequence[Value | None]:
    return [*results, *[None] * (3 - len(results)), total]


IMPORTS: tuple[Import, ...] = (
    Import("BatchNormalization", {1: import_batch_norm}),
    Import("InstanceNormalization", {1: _channel_norm}),
    Import("GroupNormalization", {18: import_group_norm_18, 21: import_group_norm}),
    Import("LayerNormalization", {1: import_layer_norm}),
    Import("RMSNormalization", {23: import_rms_norm}),
    Import("SimplifiedLayerNormalization", {1: import_rms_norm}),
    Import("SkipLayerNormalization", {1: import_skip_layer_norm}, domain="com.microsoft"),
    Import("SkipSimplifiedLayerNormalization", {1: import_skip_rms_norm}, domain="com.microsoft"),
    Import("LRN", {1: direct(response.local_response_norm, "size", "alpha", "beta", "bias")}),
    Import("LpNormalization", {1: direct(response.lp_norm, "axis", "p")}),
    Import("MeanVarianceNormalization", {9: direct(response.mean_variance_norm, "axes")}),
)
