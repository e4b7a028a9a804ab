"""Importers of normalization; missing gains and shifts become ones and zeros."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from regraft.frontends.torch.call import CallImport, Import, Importer, UnsupportedCallError, row
from regraft.frontends.torch.ops.repeat import expanded
from regraft.frontends.torch.ops.shape import reshaped, shape_of
from regraft.ir.dims import DimLike
from regraft.ir.graph import Value
from regraft.ir.ops import arithmetic, norm, reduce
from regraft.ir.ops.fill import constant_of_shape
from regraft.ir.ops.reshaping import unsqueeze
from regraft.ir.types import DType


def _constant(c: CallImport, number: float, shape: Sequence[DimLike], dtype: DType) -> Value:
    sizes = [size for size in shape if isinstance(size, int)]
    if len(sizes) == len(shape):
        return c.b.constant(np.full(sizes, number), dtype)
    value = np.asarray([number]).astype(dtype.numpy)
    return c.b.op(constant_of_shape, shape=tuple(shape), value=value)


def _layer_norm(c: CallImport) -> Value:
    return _layer_norms(c, num_outputs=1)[0]


def _layer_norms(c: CallImport, num_outputs: int = 3) -> Sequence[Value]:
    x, sizes = c.value("input"), c.sizes("normalized_shape")
    scale = c.optional("weight")
    scale = _constant(c, 1.0, sizes, c.dtype) if scale is None else scale
    return c.b.multi(
        norm.layer_norm, x, scale, c.optional("bias"), num_outputs=num_outputs,
        axis=-len(sizes), epsilon=float(c.attr("eps")),
    )  # fmt: skip


_EPSILON = {DType.F64: 2.0**-52}  # halves are normalized in f32


def _rms_norm(c: CallImport) -> Value:
    x, sizes = c.value("input"), c.sizes("normalized_shape")
    scale = c.optional("weight")
    scale = _constant(c, 1.0, sizes, c.dtype) if scale is None else c.cast(scale, c.dtype)
    eps = c.attr("eps")
    if eps is None:
        eps = _EPSILON.get(x.dtype or c.dtype, 2.0**-23)
    return c.b.op(norm.rms_norm, x, scale, axis=-len(sizes), epsilon=float(eps))


def _channels(x: Value) -> DimLike:
    return shape_of(x)[1]


def _affine(c: CallImport, x: Value) -> tuple[Value, Value]:
    """Returns gain and shift per channel."""
    weight, bias = c.optional("weight"), c.optional("bias")
    dtype = c.dtype if weight is None else weight.dtype or c.dtype
    count = (_channels(x),)
    return (
        _constant(c, 1.0, count, dtype) if weight is None else weight,
        _constant(c, 0.0, count, dtype) if bias is None else bias,
    )


def _batch_norm(c: CallImport) -> Value:
    x = c.value("input")
    mean, var = c.optional("running_mean"), c.optional("running_var")
    if c.args.get("training") and mean is not None:
        raise UnsupportedCallError(
            "batch norm in training updates its statistics: call `model.eval()` first"
        )
    if mean is None or var is None:
        mean, var = _batch_statistics(c, x)
    return c.b.op(norm.batch_norm, x, *_affine(c, x), mean, var, epsilon=float(c.attr("eps")))


def _batch_statistics(c: CallImport, x: Value) -> tuple[Value, Value]:
    """Returns mean and variance of every channel over the batch itself."""
    axes = tuple(axis for axis in range(len(shape_of(x))) if axis != 1)
    mean = c.b.op(reduce.reduce_mean, x, axes=axes, keepdims=True)
    centered = c.b.op(arithmetic.sub, x, mean)
    square = c.b.op(arithmetic.mul, centered, centered)
    var = c.b.op(reduce.reduce_mean, square, axes=axes, keepdims=False)
    return reshaped(c, mean, (_channels(x),)), var


def _batch_norm_inference(c: CallImport) -> Sequence[Value | None]:
    return [_batch_norm(c), None, None]


def _group_norm(c: CallImport) -> Value:
    x = c.value("input")
    return _grouped(c, x, c.attr("num_groups"), float(c.attr("eps")))


def _grouped(c: CallImport, x: Value, groups: int, eps: float) -> Value:
    shape = shape_of(x)
    if len(shape) == 2:  # no spatial axis: one of size 1 stands in
        x = c.b.op(unsqueeze, x, axes=(2,))
    out = c.b.op(norm.group_norm, x, *_affine(c, x), groups=groups, epsilon=eps)
    return reshaped(c, out, shape)


def _native_group_norm(c: CallImport) -> Sequence[Value | None]:
    x = c.value("input")
    return [_grouped(c, x, c.attr("group"), float(c.attr("eps"))), None, None]


def _instance_norm(c: CallImport) -> Value:
    x = c.value("input")
    if not c.attr("use_input_stats"):
        return _batch_norm(c)
    if c.optional("running_mean") is not None:
        raise UnsupportedCallError(
            "instance norm in training updates its statistics: call `model.eval()` first"
        )
    return c.b.op(norm.instance_norm, x, *_affine(c, x), epsilon=float(c.attr("eps")))


def _weight_norm(names: tuple[str, str]) -> Importer:
    """Returns an importer of `v * (g / norm of v)`, the norm over all axes but one."""

    def run(c: CallImport) -> Sequence[Value | None]:
        v, g = c.value(names[0]), c.value(names[1])
        rank = len(shape_of(v))
        dim: int = c.attr("dim")
        # -1 stands for a norm over everything
        axes = tuple(axis for axis in range(rank) if dim == -1 or axis != dim % rank)
        size = c.b.op(reduce.reduce_l2, v, axes=axes, keepdims=True)
        factor = c.b.op(arithmetic.div, expanded(c, g, shape_of(size)), size)
        out = c.b.op(arithmetic.mul, v, factor)
        return [out] if len(c.results) == 1 else [out, size]

    return run


IMPORTS: tuple[Import, ...] = (
    row(_layer_norm, "aten.layer_norm.default"),
    row(_layer_norms, "aten.native_layer_norm.default"),
    row(_rms_norm, "aten.rms_norm.default"),
    row(_batch_norm, "aten.batch_norm.default"),
    row(_batch_norm_inference, "aten._native_batch_norm_legit_no_training.default"),
    row(_group_norm, "aten.group_norm.default"),
    row(_native_group_norm, "aten.native_group_norm.default"),
    row(_instance_norm, "aten.instance_norm.default"),
    row(_weight_norm(("v", "g")), "aten._weight_norm.default",
        "aten._weight_norm_interface.default"),
)  # fmt: skip
