"""Sizes and counts as people read them."""

from __future__ import annotations


def human_bytes(count: int | None) -> str:
    """Returns a size with a unit: `12.3 MB`."""
    if count is None:
        return "-"
    number = float(count)
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def human_count(count: int | None) -> str:
    """Returns a large count with a unit: `1.27 G`."""
    if count is None:
        return "-"
    for factor, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M")):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count:,}"
