"""Changed copies of lists."""

from __future__ import annotations

from torch import Tensor


def insert_item(items: list[Tensor], item: Tensor, at: int) -> list[Tensor]:
    """Returns the list with an item before a position; negative ones count from the end."""
    return [*items[:at], item, *items[at:]]


def erase_item(items: list[Tensor], at: int) -> list[Tensor]:
    """Returns the list without one item."""
    at %= len(items)
    return items[:at] + items[at + 1 :]
