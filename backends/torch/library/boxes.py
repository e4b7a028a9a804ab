"""Boxes: non-maximum suppression."""

from __future__ import annotations

import torch
from torch import Tensor


def suppress_boxes(
    boxes: Tensor,
    scores: Tensor,
    max_boxes: Tensor | None,
    iou_threshold: Tensor | None,
    score_threshold: Tensor | None,
    centered: bool,
) -> Tensor:
    """Returns (batch, class, box) rows of the boxes kept, by falling score within a class.

    Source: ONNX NonMaxSuppression-11.
    """
    limit = 0 if max_boxes is None else int(max_boxes)
    iou = 0.0 if iou_threshold is None else float(iou_threshold)
    floor = None if score_threshold is None else float(score_threshold)
    first, second = boxes[..., :2], boxes[..., 2:]
    if centered:
        low, high = first - second / 2, first + second / 2
    else:
        low, high = torch.minimum(first, second), torch.maximum(first, second)
    rows = [
        (image, label, box)
        for image in range(scores.shape[0])
        for label in range(scores.shape[1])
        for box in kept_boxes(low[image], high[image], scores[image, label], limit, iou, floor)
    ]
    return torch.tensor(rows, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


def kept_boxes(
    low: Tensor, high: Tensor, scores: Tensor, limit: int, iou: float, floor: float | None
) -> list[int]:
    """Returns boxes by falling score, without those that overlap a kept one too much."""
    area = (high - low).prod(1)
    order = scores.sort(descending=True, stable=True).indices
    if floor is not None:
        order = order[scores[order] > floor]
    kept: list[int] = []
    while len(order) and len(kept) < limit:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        sides = torch.minimum(high[best], high[rest]) - torch.maximum(low[best], low[rest])
        common = sides.clamp(min=0).prod(1)
        union = area[best] + area[rest] - common
        valid = (common > 0) & (union > 0)
        overlap = torch.where(valid, common / torch.where(valid, union, 1), 0)
        order = rest[overlap <= iou]
    return kept
