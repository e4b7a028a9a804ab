"""Spaces of positions: what the axes of tensors are made of, and their unification.

A space is a row of positions of which some may be dropped. It is a leaf, a *product* of spaces
(an axis that holds blocks: heads of channels, row-major) or a *sum* (parts one after another). Two
axes whose positions correspond are unified: leaves are linked, products and sums are refined until
their factors and parts agree, `(12 64)` with `768`, `q + k + v` with `(3 768)`. Labels are per
axis, never per element, so that the work is linear in the axes of a graph.

Where two forms do not nest (`(12 64)` with `(16 48)`), both are pinned: no position may go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from regraft.ir.dims import DimLike, exact_quotient, known_equal, product


@dataclass(frozen=True, slots=True)
class Pin:
    """Why positions of a space must all stay.

    Args:
        op: The operator that needs them, or `graph`.
        node: Name of the place.
        axis: Which of its axes: `x axis 1`, `out axis 0`.
        reason: One sentence.
    """

    op: str
    node: str
    axis: str
    reason: str

    def __str__(self) -> str:
        where = f"`{self.node}`" if self.node else "an unnamed node"
        return f"{self.op} {where}, {self.axis}: {self.reason}"


class Form(Enum):
    """What a space is made of."""

    LEAF = "leaf"
    PRODUCT = "product"
    SUM = "sum"


class Space:
    """A row of positions; compare what `find` returns, by identity.

    Attributes:
        size: Number of positions.
        form: What it is made of.
        parts: Factors (outer first) or summands.
        pin: Why nothing may be dropped, of a leaf; None when positions may go.
        outer: Of a leaf: the space over whose positions it may keep other positions in every block
            (equal counts), or None when every block keeps the same.
    """

    __slots__ = ("_same", "form", "outer", "parts", "pin", "size")

    def __init__(self, size: DimLike, pin: Pin | None = None, outer: Space | None = None) -> None:
        self.size = size
        self.form = Form.LEAF
        self.parts: tuple[Space, ...] = ()
        self.pin = pin
        self.outer = outer
        self._same: Space | None = None

    def __repr__(self) -> str:
        root = find(self)
        if root.form is Form.LEAF:
            return f"{root.size}{'!' if root.pin else ''}{'*' if root.outer else ''}"
        sign = " " if root.form is Form.PRODUCT else " + "
        return f"({sign.join(map(repr, root.parts))})"


def find(space: Space) -> Space:
    """Returns the space that stands for all that were unified with this one."""
    root = space
    while root._same is not None:
        root = root._same
    while space is not root:
        space._same, space = root, space._same
    return root


def product_of(spaces: Sequence[Space]) -> Space:
    """Returns the space of blocks in blocks, outer first; factors of size 1 are left out."""
    factors = tuple(space for space in spaces if space.size != 1)
    if len(factors) == 1:
        return factors[0]
    space = Space(product(factor.size for factor in factors))
    if factors:
        space.form, space.parts = Form.PRODUCT, factors
    return space


def sum_of(spaces: Sequence[Space]) -> Space:
    """Returns the space of parts one after another; empty parts are left out."""
    parts = tuple(space for space in spaces if space.size != 0)
    if len(parts) == 1:
        return parts[0]
    total: DimLike = 0
    for part in parts:
        total = part.size + total
    space = Space(total)
    if parts:
        space.form, space.parts = Form.SUM, parts
    return space


def factors_of(space: Space) -> list[Space]:
    """Returns the factors, outer first, none of which is a product."""
    space = find(space)
    if space.form is not Form.PRODUCT:
        return [] if space.size == 1 else [space]
    return [factor for part in space.parts for factor in factors_of(part)]


def summands_of(space: Space) -> list[Space]:
    """Returns the parts in order, none of which is a sum."""
    space = find(space)
    if space.form is not Form.SUM:
        return [space]
    return [piece for part in space.parts for piece in summands_of(part)]


def leaves_of(space: Space) -> list[Space]:
    """Returns the leaves in order, with repetitions."""
    space = find(space)
    if space.form is Form.LEAF:
        return [space]
    return [leaf for part in space.parts for leaf in leaves_of(part)]


def pin(space: Space, why: Pin) -> None:
    """Forbids dropping positions of the space; the first reason stays."""
    for leaf in leaves_of(space):
        if leaf.pin is None:
            leaf.pin = why


def unify(a: Space, b: Space, why: Pin) -> None:
    """Makes position i of one space and position i of the other one thing.

    Args:
        a: One space.
        b: The other.
        why: The reason to give where the forms do not nest.
    """
    a, b = find(a), find(b)
    if a is b:
        return
    if not known_equal(a.size, b.size):
        _pin_all((a, b), why)
    elif a.form is Form.LEAF:
        _link(a, b)
    elif b.form is Form.LEAF:
        _link(b, a)
    elif a.form is Form.PRODUCT and b.form is Form.PRODUCT:
        _unify_products(a, b, why)
    elif a.form is Form.SUM and b.form is Form.SUM:
        _unify_sums(a, b, why)
    elif a.form is Form.PRODUCT:
        _unify_product_sum(a, b, why)
    else:
        _unify_product_sum(b, a, why)


def _link(leaf: Space, other: Space) -> None:
    if other.form is Form.LEAF:
        if (
            leaf.outer is None
            or other.outer is None
            or factors_of(leaf.outer) != factors_of(other.outer)
        ):
            other.outer = None
        other.pin = other.pin or leaf.pin
    elif leaf.pin is not None:
        pin(other, leaf.pin)
    leaf._same = other
    leaf.outer = None


def _pin_all(spaces: Sequence[Space], why: Pin) -> None:
    for space in spaces:
        pin(space, why)


# -- refinement --------------------------------------------------------------------------------


def split_leaf(leaf: Space, sizes: tuple[DimLike, ...], form: Form) -> tuple[Space, ...]:
    """Turns a leaf into a product or sum of new leaves and returns these."""
    leaf.parts = tuple(Space(size, leaf.pin) for size in sizes)
    leaf.form, leaf.outer, leaf.pin = form, None, None
    return leaf.parts


def _unify_products(a: Space, b: Space, why: Pin) -> None:
    left, right = factors_of(a), factors_of(b)
    while left and right:
        # earlier steps may have refined what comes later
        left = [*factors_of(left[0]), *left[1:]]
        right = [*factors_of(right[0]), *right[1:]]
        x, y = left[0], right[0]
        if known_equal(x.size, y.size):
            unify(x, y, why)
            left, right = left[1:], right[1:]
        elif (rest := exact_quotient(x.size, y.size)) is not None:
            step = _take_outer(left, right, rest, why)
            if step is None:
                break
            left, right = step
        elif (rest := exact_quotient(y.size, x.size)) is not None:
            step = _take_outer(right, left, rest, why)
            if step is None:
                break
            right, left = step
        else:
            break
    _pin_all([*left, *right], why)


def _take_outer(
    large: list[Space], small: list[Space], rest: DimLike, why: Pin
) -> tuple[list[Space], list[Space]] | None:
    """Splits the first of `large` so that it begins with the first of `small`."""
    first = large[0]
    if first.form is Form.LEAF:
        return [*split_leaf(first, (small[0].size, rest), Form.PRODUCT), *large[1:]], small
    # a sum is no product by itself: it meets as many factors as fill it
    for count in range(2, len(small) + 1):
        if known_equal(product(space.size for space in small[:count]), first.size):
            unify(product_of(small[:count]), first, why)
            return large[1:], small[count:]
    return None


def _unify_sums(a: Space, b: Space, why: Pin) -> None:
    left, right = summands_of(a), summands_of(b)
    while left and right:
        left = [*summands_of(left[0]), *left[1:]]
        right = [*summands_of(right[0]), *right[1:]]
        x, y = left[0], right[0]
        if known_equal(x.size, y.size):
            unify(x, y, why)
            left, right = left[1:], right[1:]
            continue
        if not isinstance(x.size, int) or not isinstance(y.size, int):
            break
        pieces = cut(x, y.size) if x.size > y.size else cut(y, x.size)
        if pieces is None:
            break
        if x.size > y.size:
            left = [*pieces, *left[1:]]
        else:
            right = [*pieces, *right[1:]]
    _pin_all([*left, *right], why)


def cut(space: Space, at: int) -> tuple[Space, Space] | None:
    """Returns the spaces before and after a position, refining; None where blocks would break."""
    space = find(space)
    if not isinstance(space.size, int):
        return None
    if space.form is Form.LEAF:
        first, second = split_leaf(space, (at, space.size - at), Form.SUM)
        return first, second
    if space.form is Form.SUM:
        return _cut_sum(space, at)
    factors = factors_of(space)
    inner = product(factor.size for factor in factors[1:])
    if not isinstance(inner, int) or at % inner:
        return None
    pieces = cut(factors[0], at // inner)
    if pieces is None:
        return None
    drop_freedom(factors[1:])
    return product_of([pieces[0], *factors[1:]]), product_of([pieces[1], *factors[1:]])


def _cut_sum(space: Space, at: int) -> tuple[Space, Space] | None:
    before: list[Space] = []
    rest = summands_of(space)
    while rest and isinstance(rest[0].size, int) and rest[0].size <= at:
        at -= rest[0].size
        before.append(rest.pop(0))
    if at:
        pieces = cut(rest[0], at)
        if pieces is None:
            return None
        before.append(pieces[0])
        rest[0] = pieces[1]
    return sum_of(before), sum_of(rest)


def drop_freedom(spaces: Sequence[Space]) -> None:
    """Makes every block keep the same positions."""
    for space in spaces:
        for leaf in leaves_of(space):
            leaf.outer = None


def _unify_product_sum(blocks: Space, parts: Space, why: Pin) -> None:
    """Cuts the outermost factor where the parts end: `(3 768)` with `q + k + v`."""
    factors, pieces = factors_of(blocks), summands_of(parts)
    inner = product(factor.size for factor in factors[1:])
    counts = [exact_quotient(piece.size, inner) for piece in pieces]
    whole = [count for count in counts if count is not None]
    if len(whole) < len(counts):
        _pin_all((blocks, parts), why)
        return
    drop_freedom(factors[1:])
    outer = [Space(count) for count in whole]
    # a factor that falls to single positions has parts of size 1, which hold no choice
    unify(factors[0], sum_of(outer), why)
    for piece, count in zip(pieces, outer, strict=True):
        unify(piece, product_of([count, *factors[1:]]), why)
