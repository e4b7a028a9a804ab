"""causal_conv: depthwise convolution that looks back only, with the positions it needs as state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.ir.dims import DimLike, product
from regraft.ir.graph import Node
from regraft.ir.ops.conv import add_bias, convolve
from regraft.ir.ops.windows import Windows
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec
from regraft.ir.types import TensorType, Type

if TYPE_CHECKING:
    from regraft.ir.evaluate import EvalContext

Array = np.ndarray[Any, Any]


def _infer_causal_conv(node: Node) -> tuple[Type, Type]:
    x, weight = node.inputs[0], node.inputs[1]
    if x is None or weight is None:
        raise node.error("x or weight is missing")
    if x.shape is None:
        return TensorType(x.dtype, None), TensorType(x.dtype, None)
    if len(x.shape) != 3:
        raise node.error(f"x has rank {len(x.shape)}, expected [batch, channels, length]")
    state = node.fresh_dim(1, 2) if weight.shape is None else weight.shape[2] - 1
    return x.type, TensorType(x.dtype, (*x.shape[:2], state))


def _eval_causal_conv(
    c: EvalContext, x: Array, weight: Array, bias: Array | None, past: Array | None
) -> tuple[Array, Array]:
    channels, taps_ = x.shape[1], weight.shape[2]
    if past is None:
        past = np.zeros((*x.shape[:2], taps_ - 1), x.dtype)
    padded = np.concatenate([past, x], axis=2)
    windows = Windows((taps_,), (1,), (1,), (0, 0))
    out = add_bias(convolve(padded, weight, windows, channels), bias)
    if c.attrs["activation"] == "silu":
        out = out / (1 + np.exp(-out))
    return out, padded[:, :, padded.shape[2] - (taps_ - 1) :]


def _flops_causal_conv(node: Node) -> DimLike | None:
    x, weight = node.inputs[0], node.inputs[1]
    if x is None or weight is None or x.shape is None or weight.shape is None:
        return None
    return product(x.shape) * weight.shape[2] * 2


causal_conv = OpSpec(
    name="causal_conv",
    source="ONNX CausalConvWithState-27",
    operands=(
        Operand("x"),
        Operand("weight"),
        Operand("bias", optional=True),
        Operand("past", optional=True),
    ),
    results=("out", "present"),
    attrs=(Attr("activation", AttrKind.STR, "none"),),  # none, silu
    axes="n c t!, c 1 k!, c, n c p! -> n c t!, n c p!",
    infer=_infer_causal_conv,
    eval=_eval_causal_conv,
    flops=_flops_causal_conv,
)

OPS: tuple[OpSpec, ...] = (causal_conv,)
