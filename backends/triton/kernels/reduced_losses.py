"""What a loss returns of the losses of its rows."""

from __future__ import annotations

from torch import Tensor


def check_reduction(what: str, reduction: str) -> None:
    """Raises ValueError for what is no reduction."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{what}: reduction `{reduction}` is not mean, sum or none")


def reduced_loss(loss: Tensor, labels: Tensor, counted: Tensor, reduction: str) -> Tensor:
    """Returns the losses of rows [R] in the shape of the labels, their sum, or their mean.

    Args:
        loss: [R], zero where a row does not count.
        labels: Of any shape with R elements.
        counted: [R], labels; -1 where a row does not count.
        reduction: `mean` over the rows that count, `sum`, or `none`.
    """
    match reduction:
        case "none":
            return loss.reshape(labels.shape)
        case "sum":
            return loss.sum()
        case _:
            return loss.sum() / (counted >= 0).sum()
