"""Which operators compute in half precision, which stay in f32, and why.

`LOWERED` lists operators whose every f32 operand and result may be f16 or bf16 at once, in ONNX's
schemas and in real kernels, which accumulate in f32. `KEPT` lists operators that stay in f32
although a half-precision form exists, each with the reason. What stands in neither list and moves
no data (an operator of a plugin, an opaque one) stays in f32 too: an ill-typed graph is impossible.
"""

from __future__ import annotations

from regraft.ir.graph import Node
from regraft.ir.ops import (
    activation,
    arithmetic,
    attention,
    causal_conv,
    control,
    conv,
    cumulative,
    detection,
    einsum,
    fill,
    functions,
    grid_sample,
    linalg,
    linear_attention,
    logical,
    loss,
    moe,
    norm,
    pool,
    quant,
    quant_linalg,
    random,
    reduce,
    region,
    resize,
    response_norm,
    rnn,
    rotary,
    rounding,
    scattering,
    selecting,
    sequence,
    signal,
    softmax,
)
from regraft.ir.opspec import OpSpec, Trait

LOWERED: frozenset[OpSpec] = frozenset(
    {
        activation.relu, activation.leaky_relu, activation.thresholded_relu, activation.prelu,
        activation.elu, activation.selu, activation.celu, activation.sigmoid,
        activation.hard_sigmoid, activation.hard_swish, activation.swish, activation.mish,
        activation.gelu, activation.softplus, activation.softsign, activation.clip,
        arithmetic.add, arithmetic.sub, arithmetic.mul, arithmetic.div, arithmetic.min_,
        arithmetic.max_, arithmetic.neg, arithmetic.abs_,
        attention.attention, rotary.rotary_embedding,
        causal_conv.causal_conv, conv.conv, conv.conv_transpose,
        einsum.einsum, linalg.matmul, linalg.gemm,
        functions.sqrt, functions.reciprocal, functions.erf, functions.sin, functions.cos,
        functions.tanh,
        logical.where, fill.trilu, fill.constant_of_shape,
        norm.batch_norm, norm.layer_norm, norm.rms_norm, norm.group_norm,
        pool.max_pool, pool.average_pool, pool.global_max_pool,
        rnn.rnn, rnn.gru, rnn.lstm,
        scattering.scatter_elements, scattering.scatter_nd,
        resize.resize, reduce.reduce_max, reduce.reduce_min,
    }
)  # fmt: skip

_STATISTICS = "its statistics run over long axes"
_SUM = "a sum over a long axis loses small terms"
_RANGE = "its results leave the range of f16 for ordinary operands"
_JUMP = "a rounded operand changes the result by a jump"
_SCHEMA = "ONNX defines it for f32 only, or for wider types"
_PLACES = "positions need more than 11 bits"
_QUANT = "quantized arithmetic is left as it is"
_CONTROL = "values that enter and leave bodies keep their type"


def _why(reason: str, *specs: OpSpec) -> dict[OpSpec, str]:
    return dict.fromkeys(specs, reason)


KEPT: dict[OpSpec, str] = {
    **_why(
        "its sum of exponentials needs f32",
        softmax.softmax, softmax.log_softmax, *loss.OPS,
    ),
    **_why(
        _STATISTICS, norm.instance_norm, response_norm.lp_norm, response_norm.mean_variance_norm,
        response_norm.local_response_norm,
    ),
    **_why(
        _SUM, *(op for op in reduce.OPS if op not in LOWERED), *cumulative.OPS,
        pool.global_average_pool, pool.global_lp_pool, pool.lp_pool,
        linear_attention.linear_attention, linalg.det,
    ),
    **_why(
        _RANGE, functions.exp, functions.log, arithmetic.pow_, functions.tan, functions.sinh,
        functions.cosh, functions.asinh, functions.acosh, functions.atanh, functions.asin,
        functions.acos, functions.atan,
    ),
    **_why(_JUMP, *rounding.OPS, softmax.hardmax, selecting.top_k, moe.moe),
    **_why(_SCHEMA, fill.range_, fill.eye_like, detection.non_max_suppression, *signal.OPS),
    **_why("ONNX has no bf16 form of it", selecting.one_hot, activation.shrink),
    **_why(
        _PLACES, *grid_sample.OPS, *region.OPS, pool.max_pool_with_indices,
    ),
    **_why(_QUANT, *quant.OPS, *quant_linalg.OPS),
    **_why(_CONTROL, *control.OPS, *sequence.OPS),
    **_why("random numbers are drawn in f32", *random.OPS),
}  # fmt: skip
"""Operators that stay in f32, with the reason."""

NO_FORM = "it has no half-precision form here"

_SCATTERS = frozenset({scattering.scatter_elements, scattering.scatter_nd})

_F32_SLOTS: dict[OpSpec, frozenset[str]] = {
    resize.resize: frozenset({"roi", "scales"}),  # scales are f32 in the schema
}
"""Operand slots of lowered operators that take f32 whatever the others take."""


def reason_to_keep(node: Node) -> str | None:
    """Returns why an operator stays in f32 by its kind, None when it may be lowered."""
    reason = KEPT.get(node.op)
    if reason is not None:
        return reason
    if node.op in _SCATTERS and node.attrs["reduction"] != "none":
        return _SUM
    if node.op in LOWERED or follows_operands(node):
        return None
    if Trait.DISCRETE in node.op.traits:
        return _JUMP
    return NO_FORM


def follows_operands(node: Node) -> bool:
    """Returns whether the node only moves elements: it computes in whatever type it is given."""
    return Trait.DATA_MOVEMENT in node.op.traits


def stays_f32(node: Node, idx: int) -> bool:
    """Returns whether one operand of a lowered node is f32 all the same."""
    slots = _F32_SLOTS.get(node.op)
    operands = node.op.operands
    return slots is not None and idx < len(operands) and operands[idx].name in slots
