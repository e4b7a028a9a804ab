"""Axis rules of data movement, as functions of shapes."""

from __future__ import annotations

from collections.abc import Collection

from regraft.ir.dims import DimLike, Shape, exact_quotient, exactdiv, known_equal, product
from regraft.ir.graph import Node


def data_rule(node: Node, left: str, right: str) -> str:
    """Returns the rule of an operator whose operands after the data have no axis information."""
    return f"{left}{', .' * (len(node.inputs) - 1)} -> {right}"


def labels(rank: int, pinned: Collection[int] = (), *, prefix: str = "x") -> str:
    """Returns `d0 d1 …`, where the pinned axes have labels of their own: `d0 x1! d2`."""
    return " ".join(f"{prefix}{i}!" if i in pinned else f"d{i}" for i in range(rank))


def pinned_rule(node: Node, rank: int, pinned: Collection[int]) -> str:
    """Returns a rule of one data operand under which all axes pass, save the `pinned`."""
    return data_rule(node, labels(rank, pinned), labels(rank, pinned, prefix="y"))


def ones(rank: int, unit: Collection[int]) -> str:
    """Returns `d0 1 d2`: labels of the axes, 1 at those in `unit`."""
    return " ".join("1" if i in unit else f"d{i}" for i in range(rank))


def reshape_rule(x: Shape, out: Shape) -> tuple[str, str] | None:
    """Returns the two sides of the rule that splits and merges axes into common factors.

    `[B, S, 768] -> [B, S, 12, 64]` gives `d0 d1 (d2 d3)` and `d0 d1 d2 d3`. None when a size of one
    side does not divide what is left of the other (`[6] -> [4, …]`, or unrelated symbols).
    """
    left: list[list[str]] = [[] for _ in x]
    right: list[list[str]] = [[] for _ in out]
    i = j = num = 0
    a: DimLike = 1  # what is left of axis i - 1 of `x`
    b: DimLike = 1  # what is left of axis j - 1 of `out`
    while True:
        while a == 1 and i < len(x):
            a, i = x[i], i + 1
        while b == 1 and j < len(out):
            b, j = out[j], j + 1
        if a == 1 and b == 1:
            return _term(left), _term(right)
        rest = _rest(a, b, x[i:], out[j:])
        if rest is None:
            return None
        left[i - 1].append(f"d{num}")
        right[j - 1].append(f"d{num}")
        a, b = rest
        num += 1


def partial_reshape_rule(x: Shape, out: Shape) -> tuple[str, str] | None:
    """Returns the rule of a reshape of which only the first and last axes are understood.

    `[A, B, 32] -> [C, D, 4, 8]` gives `x0! x1! (d0 d1)` and `y0! y1! d0 d1`. None when no axis is.
    """
    first = _longest(x, out, ends=False)
    rest_x, rest_out = x[first[0] :], out[first[1] :]
    last = _longest(rest_x, rest_out, ends=True)
    middle = len(x) - last[0], len(out) - last[1]
    if first == last == (0, 0):
        return None
    heads = reshape_rule(x[: first[0]], out[: first[1]]) or ("", "")
    tails = reshape_rule(x[middle[0] :], out[middle[1] :]) or ("", "")
    left = [f"x{i}!" for i in range(first[0], middle[0])]
    right = [f"y{i}!" for i in range(first[1], middle[1])]
    return (
        " ".join([heads[0].replace("d", "h"), *left, tails[0]]),
        " ".join([heads[1].replace("d", "h"), *right, tails[1]]),
    )


def _longest(x: Shape, out: Shape, *, ends: bool) -> tuple[int, int]:
    """Returns how many first (or last) axes of both shapes are a reshape of each other."""
    for i in range(len(x), 0, -1):
        for j in range(len(out), 0, -1):
            a, b = (x[-i:], out[-j:]) if ends else (x[:i], out[:j])
            if known_equal(product(a), product(b)) and reshape_rule(a, b) is not None:
                return i, j
    return 0, 0


def _rest(a: DimLike, b: DimLike, xs: Shape, outs: Shape) -> tuple[DimLike, DimLike] | None:
    """Returns what is left of two sizes without their shared outer factor; one of them is 1."""
    if known_equal(a, b):
        return 1, 1
    if b != 1 and (quotient := exact_quotient(a, b)) is not None:
        return quotient, 1
    if a != 1 and (quotient := exact_quotient(b, a)) is not None:
        return 1, quotient
    # [S] -> [4, S / 4] divides although S is no multiple of 4 as a polynomial
    if b != 1 and _starts_with(outs, a, b):
        return exactdiv(a, b), 1
    if a != 1 and _starts_with(xs, b, a):
        return 1, exactdiv(b, a)
    return None


def _starts_with(sizes: Shape, total: DimLike, first: DimLike) -> bool:
    """Returns whether `first` times some leading `sizes` is `total`."""
    for size in sizes:
        first = size * first
        if known_equal(first, total):
            return True
    return False


def _term(axes: list[list[str]]) -> str:
    return " ".join(
        "1" if not names else names[0] if len(names) == 1 else f"({' '.join(names)})"
        for names in axes
    )
