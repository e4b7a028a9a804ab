"""Importers of activation functions, gates, and dropout out of training."""

from __future__ import annotations

from regraft.frontends.torch.call import CallImport, Import, UnsupportedCallError, row
from regraft.frontends.torch.ops.elementwise import apply, expm1
from regraft.ir.dims import exactdiv
from regraft.ir.graph import Value
from regraft.ir.ops import activation as ops
from regraft.ir.ops import arithmetic, logical
from regraft.ir.ops.reshaping import reshape
from regraft.ir.ops.slicing import split
from regraft.ir.types import DType


def _relu(c: CallImport) -> Value:
    x = c.value("self")
    if c.dtype.is_float:
        return c.b.op(ops.relu, x)
    return c.b.op(arithmetic.max_, x, c.number(0, c.dtype))  # runtimes have no relu of integers


def _gelu(c: CallImport) -> Value:
    return c.b.op(ops.gelu, c.value("self"), tanh=c.attr("approximate") == "tanh")


# Klambauer et al. 2017, in double precision; ONNX's defaults are the f32 neighbours
_SELU = {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805}


def _selu(c: CallImport) -> Value:
    return c.b.op(ops.selu, c.value("self"), **_SELU)


def _elu(c: CallImport) -> Value:
    x, alpha, scale = c.value("self"), float(c.attr("alpha")), c.attr("scale")
    if c.attr("input_scale") != 1:
        factor = c.number(c.attr("input_scale"), c.dtype)
        inner = expm1(c, c.b.op(arithmetic.mul, x, factor))
        negative = c.b.op(arithmetic.mul, inner, c.number(alpha, c.dtype))
        is_positive = c.b.op(logical.greater, x, c.number(0.0, c.dtype))
        result = c.b.op(logical.where, is_positive, x, negative)
    else:
        result = c.b.op(ops.elu, x, alpha=alpha)
    return result if scale == 1 else c.b.op(arithmetic.mul, result, c.number(scale, c.dtype))


def _relu6(c: CallImport) -> Value:
    return c.b.op(ops.clip, c.value("self"), min=0.0, max=6.0)


def _hardtanh(c: CallImport) -> Value:
    low, high = float(c.attr("min_val")), float(c.attr("max_val"))
    return c.b.op(ops.clip, c.value("self"), min=low, max=high)


def _softplus(c: CallImport) -> Value:
    x, beta, threshold = c.value("self"), c.attr("beta"), c.attr("threshold")
    factor = c.number(beta, c.dtype)
    inner = x if beta == 1 else c.b.op(arithmetic.mul, x, factor)
    result = c.b.op(ops.softplus, inner)
    result = result if beta == 1 else c.b.op(arithmetic.div, result, factor)
    # beyond the threshold the function is x; from 20 on that is its value in f32 too
    if threshold >= 20 and c.dtype is not DType.F64:
        return result
    beyond = c.b.op(logical.greater, inner, c.number(threshold, c.dtype))
    return c.b.op(logical.where, beyond, x, result)


def _threshold(c: CallImport) -> Value:
    x = c.value("self")
    above = c.b.op(logical.greater, x, c.number(c.attr("threshold"), c.dtype))
    return c.b.op(logical.where, above, x, c.number(c.attr("value"), c.dtype))


def _prelu(c: CallImport) -> Value:
    x, slope = c.value("self"), c.value("weight")
    rank = x.rank or 0
    if slope.rank == 1 and rank >= 2:  # one slope per channel
        slope = c.b.op(reshape, slope, shape=((slope.shape or (1,))[0], *(1,) * (rank - 2)))
    elif slope.rank == 1 and rank == 0:
        slope = c.b.op(reshape, slope, shape=())
    return c.b.op(ops.prelu, x, slope)


def _log_sigmoid(c: CallImport) -> Value:
    negative = c.b.op(arithmetic.neg, c.value("self"))
    return c.b.op(arithmetic.neg, c.b.op(ops.softplus, negative))


def _glu(c: CallImport) -> Value:
    x = c.value("self")
    shape = x.shape or ()
    axis = c.axis("dim", len(shape))
    half = exactdiv(shape[axis], 2)
    a, gate = c.b.multi(split, x, num_outputs=2, axis=axis, sizes=(half, half))
    return c.b.op(arithmetic.mul, a, c.b.op(ops.sigmoid, gate))


def _hard_sigmoid(c: CallImport) -> Value:
    return c.b.op(ops.hard_sigmoid, c.value("self"), alpha=1 / 6, beta=0.5)


def _hard_shrink(c: CallImport) -> Value:
    return c.b.op(ops.shrink, c.value("self"), lambd=float(c.attr("lambd")), bias=0.0)


def _soft_shrink(c: CallImport) -> Value:
    lambd = float(c.attr("lambd"))
    return c.b.op(ops.shrink, c.value("self"), lambd=lambd, bias=lambd)


def _leaky_relu(c: CallImport) -> Value:
    return c.b.op(ops.leaky_relu, c.value("self"), alpha=float(c.attr("negative_slope")))


def _rrelu(c: CallImport) -> Value:
    if c.attr("training"):
        raise UnsupportedCallError("the slopes are random in training")
    slope = (float(c.attr("lower")) + float(c.attr("upper"))) / 2
    return c.b.op(ops.leaky_relu, c.value("self"), alpha=slope)


def _celu(c: CallImport) -> Value:
    return c.b.op(ops.celu, c.value("self"), alpha=float(c.attr("alpha")))


def _dropout(c: CallImport) -> Value:
    if c.attr("train") and c.attr("p") > 0:
        raise UnsupportedCallError("dropout in training is random: call `model.eval()` first")
    return c.value("input" if "input" in c.args else "self")  # the in-place form says `self`


IMPORTS: tuple[Import, ...] = (
    row(_relu, "aten.relu.default"),
    row(apply(ops.sigmoid), "aten.sigmoid.default", "aten.special_expit.default"),
    row(apply(ops.swish), "aten.silu.default"),
    row(apply(ops.mish), "aten.mish.default"),
    row(_selu, "aten.selu.default"),
    row(apply(ops.hard_swish), "aten.hardswish.default"),
    row(_hard_sigmoid, "aten.hardsigmoid.default"),
    row(_gelu, "aten.gelu.default"),
    row(_elu, "aten.elu.default"),
    row(_celu, "aten.celu.default"),
    row(_relu6, "aten.relu6.default"),
    row(_hardtanh, "aten.hardtanh.default"),
    row(_softplus, "aten.softplus.default"),
    row(_threshold, "aten.threshold.default"),
    row(_prelu, "aten.prelu.default", "aten._prelu_kernel.default"),
    row(_log_sigmoid, "aten.log_sigmoid.default"),
    row(_glu, "aten.glu.default"),
    row(_hard_shrink, "aten.hardshrink.default"),
    row(_soft_shrink, "aten.softshrink.default"),
    row(_leaky_relu, "aten.leaky_relu.default"),
    row(_rrelu, "aten.rrelu.default"),
    row(
        _dropout, "aten.dropout.default", "aten.feature_dropout.default",
        "aten.alpha_dropout.default", "aten.feature_alpha_dropout.default",
    ),
)  # fmt: skip
