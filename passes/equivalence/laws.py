"""How operators pass a positive factor on: what the powers of operands and results have to obey.

A tensor that holds a factor `f` to the power `e` was multiplied by `f ** e`. A product adds the
powers of its operands, a sum wants them all equal, a rectifier keeps them; what is in no table does
not commute with factors at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from regraft.ir.constants import constant_of, is_constant
from regraft.ir.graph import Node, Value
from regraft.ir.ops import (
    activation,
    arithmetic,
    attention,
    cast,
    conv,
    einsum,
    gathering,
    linalg,
    logical,
    norm,
    pool,
    reduce,
    repeating,
    reshaping,
    resize,
    slicing,
)
from regraft.ir.opspec import OpSpec


@dataclass(frozen=True, slots=True)
class Sides:
    """Powers of a weight that maps a row of channels to itself, the residual stream's own.

    Args:
        read: Along the axes that are summed over.
        made: Along the others.
    """

    read: int
    made: int


Power = int | Sides
Choice = tuple[tuple[int, Power], ...]
"""(slot, power) pairs; results count from -1 downwards."""

Answer = str | Sequence[Choice]
"""Why a factor does not pass, or the ways to restore the law; none when it holds."""


@dataclass(frozen=True, slots=True)
class View:
    """What a law sees of one node.

    Args:
        node: The node.
        power: Power of a slot: of a value or of a constant as this node reads it.
        set_: Whether the power of a slot is decided already.
        holds: Whether a slot's tensor has the positions of the factor.
        sides: Powers of a slot that holds the positions twice, None for others.
        is_tied: Whether the coupling followed the positions through every movement, so that a
            tensor that does not hold them has none of them.
    """

    node: Node
    power: Callable[[int], int]
    set_: Callable[[int], bool]
    holds: Callable[[int], bool]
    sides: Callable[[int], Sides | None]
    is_tied: bool

    def value(self, slot: int) -> Value | None:
        """The value of a slot."""
        return self.node.inputs[slot] if slot >= 0 else self.node.outputs[-1 - slot]

    def is_constant(self, slot: int) -> bool:
        """Whether a slot is a constant operand."""
        return slot >= 0 and is_constant(self.node.inputs[slot])

    def operands(self) -> Iterator[int]:
        """The slots of operands that are given."""
        return (idx for idx, value in enumerate(self.node.inputs) if value is not None)


def answer(view: View) -> Answer:
    """Returns how a node's law is restored."""
    law = LAWS.get(view.node.op)
    if law is None:
        return "does not commute with a factor per channel"
    return law(view)


def _equal(view: View, slots: Sequence[int], *, may_miss: bool = False) -> Answer:
    """All slots have one power.

    Args:
        view: The node.
        slots: The slots.
        may_miss: Whether a tensor may hold other positions: parts of a concat.
    """
    powers = {view.power(slot) for slot in slots if view.power(slot)}
    if not powers:
        return ()
    if len(powers) > 1:
        return "its operands would be multiplied by different factors"
    power = powers.pop()
    changes: list[tuple[int, int]] = []
    for slot in slots:
        if view.power(slot) == power or (may_miss and view.is_tied and not view.holds(slot)):
            continue
        if not view.holds(slot):
            if view.is_constant(slot) and _is_zero(view.value(slot)):
                continue
            return "an operand or result does not hold the channels"
        if view.set_(slot):
            return "its operands would be multiplied by different factors"
        changes.append((slot, power))
    return (tuple(changes),) if changes else ()


def _is_zero(value: Value | None) -> bool:
    array = constant_of(value)
    return array is not None and not array.any()


def _product(view: View, factors: Sequence[int], bias: int | None = None) -> Answer:
    """The powers of the factors add up to that of the result, which a bias has too."""
    for slot in factors:
        sides = view.sides(slot)
        if sides is not None:
            return _square(view, factors, slot, sides, bias)
    missing = view.power(-1) - sum(view.power(slot) for slot in factors)
    if missing:
        takers = _takers(view, factors)
        if not takers:
            return "no operand or result can take the factor"
        found: list[Choice] = []
        for slot in takers:
            power = -missing if slot < 0 else view.power(slot) + missing
            result = power if slot < 0 else view.power(-1)
            found.append(((slot, power), *_bias(view, bias, result)))
        return found
    rest = _bias(view, bias, view.power(-1))
    return (rest,) if rest else ()


def _square(
    view: View, factors: Sequence[int], slot: int, sides: Sides, bias: int | None
) -> Answer:
    """A weight from channels to themselves undoes the operand's power and makes the result's."""
    others = [each for each in factors if each != slot]
    if not view.is_constant(slot) or len(others) != 1:
        return "multiplies channels with themselves"
    wanted = Sides(-view.power(others[0]), view.power(-1))
    rest = _bias(view, bias, view.power(-1))
    if sides == wanted:
        return (rest,) if rest else ()
    return [((slot, wanted), *rest)]


def _takers(view: View, factors: Sequence[int]) -> list[int]:
    """Returns the slots that may restore a product, the best first: constants end the walk."""
    held = [slot for slot in factors if view.holds(slot)]
    constants = [slot for slot in held if view.is_constant(slot) and not view.set_(slot)]
    if constants:
        return constants
    free = [slot for slot in held if not view.is_constant(slot) and not view.set_(slot)]
    if not view.set_(-1) and view.holds(-1):
        return [-1]
    return free


def _bias(view: View, bias: int | None, power: int) -> tuple[tuple[int, Power], ...]:
    if bias is None or bias >= len(view.node.inputs) or view.value(bias) is None:
        return ()
    return () if view.power(bias) == power else ((bias, power),)


def _pass_on(view: View) -> Answer:
    """The first operand and the result have one power; what else it takes says how."""
    return _equal(view, (0, -1))


def _all_equal(view: View) -> Answer:
    return _equal(view, (*view.operands(), -1))


def _parts(view: View) -> Answer:
    """Parts of an axis: what lies outside of the factor's positions is left alone."""
    results = tuple(-1 - idx for idx in range(len(view.node.outputs)))
    operands = tuple(view.operands()) if view.node.op is slicing.concat else (0,)
    return _equal(view, (*operands, *results), may_miss=True)


def _padded(view: View) -> Answer:
    fill = view.node.operand("value") if view.node.op is repeating.pad else None
    zero = fill is None or _is_zero(fill)
    constant = view.node.attrs.get("mode", "constant") == "constant"
    if constant and not zero:
        return "pads with another number than 0"
    return _pass_on(view)


def _resized(view: View) -> Answer:
    cropped = view.node.attrs["coordinates"] == "tf_crop_and_resize"
    if cropped and view.node.attrs["extrapolation"]:
        return "fills with another number than 0"
    return _pass_on(view)


def _divided(view: View) -> Answer:
    if view.power(1):
        return "divides by the channels"
    if view.is_constant(1) and view.holds(1) and view.power(0) != view.power(-1):
        return [((1, view.power(0) - view.power(-1)),)]
    return _pass_on(view)


def _norm(view: View) -> Answer:
    """Gain and bias take what is asked of the result; statistics are no linear function of x."""
    if view.power(0):
        return "normalizes by statistics over the channels, which a factor would change"
    power = view.power(-1)
    if not power:
        return ()
    slots = [slot for slot in (1, 2) if slot < len(view.node.inputs) and view.value(slot)]
    missing = [slot for slot in slots if view.power(slot) != power]
    for slot in missing:
        if not view.is_constant(slot) or not view.holds(slot):
            return "its gain or bias is no constant per channel"
    return (tuple((slot, power) for slot in missing),) if missing else ()


def _attention(view: View) -> Answer:
    values = _equal(view, (2, -1))
    if isinstance(values, str) or values:
        return values
    total = view.power(0) + view.power(1)
    if not total:
        return ()
    free = [slot for slot in (0, 1) if not view.set_(slot) and view.holds(slot)]
    if not free:
        return "queries and keys would be multiplied by factors that do not cancel"
    return [((free[0], -view.power(1 - free[0])),)]


def _clip(view: View) -> Answer:
    """Bounds other than 0 become one per channel where the node is rewritten."""
    if any(view.node.operand(name) is not None for name in ("min", "max")):
        return "its bounds are known at run time only"
    return _pass_on(view)


def _gemm(view: View) -> Answer:
    if view.value(2) is not None and not view.is_constant(2):
        return "its bias is no constant"
    return _product(view, (0, 1), 2)


LAWS: Mapping[OpSpec, Callable[[View], Answer]] = {
    linalg.matmul: lambda view: _product(view, (0, 1)),
    linalg.gemm: _gemm,
    conv.conv: lambda view: _product(view, (0, 1), 2),
    conv.conv_transpose: lambda view: _product(view, (0, 1), 2),
    einsum.einsum: lambda view: _product(view, tuple(view.operands())),
    arithmetic.mul: lambda view: _product(view, (0, 1)),
    arithmetic.div: _divided,
    attention.attention: _attention,
    norm.layer_norm: _norm,
    norm.rms_norm: _norm,
    norm.batch_norm: _norm,
    norm.instance_norm: _norm,
    norm.group_norm: _norm,
    activation.clip: _clip,
    repeating.pad: _padded,
    resize.resize: _resized,
    logical.where: lambda view: _equal(view, (1, 2, -1)),
    **dict.fromkeys((arithmetic.add, arithmetic.sub, arithmetic.max_, arithmetic.min_), _all_equal),
    **dict.fromkeys((slicing.split, slicing.slice_, slicing.concat, gathering.gather), _parts),
    **dict.fromkeys(
        (
            activation.relu, activation.leaky_relu, activation.prelu, arithmetic.abs_,
            arithmetic.neg, cast.identity, cast.cast, reshaping.reshape, reshaping.transpose,
            reshaping.squeeze, reshaping.unsqueeze, repeating.expand, repeating.tile,
            pool.max_pool, pool.average_pool, pool.global_average_pool, pool.global_max_pool,
            reduce.reduce_sum, reduce.reduce_mean, reduce.reduce_max, reduce.reduce_min,
        ),
        _pass_on,
    ),
}  # fmt: skip
"""Operators that a positive factor passes through; all others refuse it."""

SIGNED: frozenset[OpSpec] = frozenset(
    {linalg.matmul, linalg.gemm, conv.conv, conv.conv_transpose, einsum.einsum, arithmetic.mul,
     arithmetic.add, arithmetic.sub, arithmetic.neg, attention.attention, norm.layer_norm,
     norm.rms_norm, norm.batch_norm, cast.identity, cast.cast, reshaping.reshape,
     reshaping.transpose, reshaping.squeeze, reshaping.unsqueeze, repeating.expand, slicing.concat,
     slicing.slice_, slicing.split, gathering.gather}
)  # fmt: skip
"""Operators that negative factors pass through too."""

NEEDS_REWRITE: frozenset[OpSpec] = frozenset({activation.clip})
"""Operators whose attributes hold numbers in the unit of their operand."""
