"""Losses: nll_loss. A softmax cross entropy is `log_softmax` followed by it."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.graph import Node
from regraft.ir.ops.shapes import operands_of, same_size
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec
from regraft.ir.types import TensorType, Type

Array = np.ndarray[Any, Any]

REDUCTIONS = ("none", "sum", "mean")


def _infer(node: Node) -> Type:
    log_probs, target = operands_of(node, 2)
    if node.attrs["reduction"] not in REDUCTIONS:
        raise node.error(
            f"`reduction` is `{node.attrs['reduction']}`", hint=f"one of {', '.join(REDUCTIONS)}"
        )
    shape, labels = log_probs.shape, target.shape
    if shape is not None and labels is not None:
        if len(shape) < 2 or len(labels) != len(shape) - 1:
            raise node.error("the target has every axis of the log-probabilities but the second")
        for have, wanted in zip(labels, (shape[0], *shape[2:]), strict=True):
            same_size(node, have, wanted, "the target and the log-probabilities")
    if node.attrs["reduction"] != "none":
        return TensorType(log_probs.dtype, ())
    if labels is None and shape is not None:
        labels = (shape[0], *shape[2:])
    return TensorType(log_probs.dtype, labels)


def _axes(node: Node) -> str | None:
    match node.attrs["reduction"]:
        case "none":
            return "n c! *d, n *d, c! -> n *d"
        case _:
            # a dropped position is not a zeroed one: zero is a valid class
            return "n! c! *d!, n! *d!, c! -> "


def _eval(c: Any, log_probs: Array, target: Array, weight: Array | None) -> Array:
    ignore, dtype = c.attrs["ignore_index"], log_probs.dtype
    kept = np.ones(target.shape, bool) if ignore is None else target != ignore
    classes = np.where(kept, target, 0)
    picked = np.take_along_axis(log_probs, np.expand_dims(classes, 1), axis=1).squeeze(1)
    factor = kept.astype(dtype) if weight is None else np.where(kept, weight[classes], 0)
    loss = np.where(kept, -picked * factor, 0).astype(dtype)
    match c.attrs["reduction"]:
        case "none":
            return loss
        case "sum":
            return np.asarray(loss.sum(), dtype)
        case _:
            return np.asarray(loss.sum() / factor.sum(), dtype)


nll_loss = OpSpec(
    name="nll_loss",
    source="ONNX NegativeLogLikelihoodLoss-22",
    # -weight[target] * log_probs[n, target, ...]; `mean` divides by the weights of the targets
    operands=(Operand("log_probs"), Operand("target"), Operand("weight", optional=True)),
    attrs=(
        Attr("reduction", AttrKind.STR, "mean"),
        Attr("ignore_index", AttrKind.INT, None),
    ),
    axes=_axes,
    infer=_infer,
    eval=_eval,
)

OPS: tuple[OpSpec, ...] = (nll_loss,)
