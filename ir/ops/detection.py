"""Detection: non_max_suppression."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.evaluate import EvalContext
from regraft.ir.graph import Node
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.types import DType, TensorType

Array = np.ndarray[Any, Any]


def _infer(node: Node) -> TensorType:
    return TensorType(DType.I64, (node.fresh_dim(0, 0), 3))


def _corners(boxes: Array, centered: bool) -> tuple[Array, Array]:
    """Returns the lower and the upper corners `[N, 2]` of boxes `[N, 4]`."""
    first, second = boxes[:, :2], boxes[:, 2:]
    if centered:
        return first - second / 2, first + second / 2
    return np.minimum(first, second), np.maximum(first, second)


def _overlaps(low: Array, high: Array, area: Array, idx: int, others: Array) -> Array:
    """Returns intersection over union of one box with others; 0 where a box has no area."""
    sides = np.minimum(high[idx], high[others]) - np.maximum(low[idx], low[others])
    common = np.prod(np.maximum(sides, 0), axis=1)
    union = area[idx] + area[others] - common
    valid = (common > 0) & (union > 0)
    return np.where(valid, common / np.where(valid, union, 1), 0)


def _select(
    boxes: Array, scores: Array, limit: int, iou: float, floor: float | None, c: EvalContext
) -> list[int]:
    """Keeps boxes by falling score, without those that overlap a kept one too much."""
    low, high = _corners(boxes, c.attrs["center_point_box"])
    area = np.prod(high - low, axis=1)
    order = np.argsort(-scores, kind="stable")
    if floor is not None:
        order = order[scores[order] > floor]
    kept: list[int] = []
    while order.size and len(kept) < limit:
        best = int(order[0])
        kept.append(best)
        rest = order[1:]
        order = rest[_overlaps(low, high, area, best, rest) <= iou]
    return kept


def _scalar(x: Array | None) -> float | None:
    return None if x is None or not x.size else float(x.reshape(-1)[0])


def _eval(
    c: EvalContext, boxes: Array, scores: Array,
    max_boxes: Array | None, iou_threshold: Array | None, score_threshold: Array | None,
) -> Array:  # fmt: skip
    limit = int(_scalar(max_boxes) or 0)
    iou, floor = _scalar(iou_threshold) or 0.0, _scalar(score_threshold)
    rows = [
        (batch, label, box)
        for batch in range(scores.shape[0])
        for label in range(scores.shape[1])
        for box in _select(boxes[batch], scores[batch, label], limit, iou, floor, c)
    ]
    return np.array(rows, np.int64).reshape(-1, 3)


non_max_suppression = OpSpec(
    name="non_max_suppression",
    source="ONNX NonMaxSuppression-11",
    operands=(
        Operand("boxes"),
        Operand("scores"),
        Operand("max_boxes_per_class", optional=True),
        Operand("iou_threshold", optional=True),
        Operand("score_threshold", optional=True),
    ),
    results=("indices",),
    attrs=(Attr("center_point_box", AttrKind.BOOL, False),),
    traits=Trait.PURE | Trait.DISCRETE,
    infer=_infer,
    eval=_eval,
)

OPS: tuple[OpSpec, ...] = (non_max_suppression,)
