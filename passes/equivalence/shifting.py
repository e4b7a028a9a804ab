"""Moving a shift per channel from what makes a value into the biases of the layers that read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of, is_constant
from regraft.ir.graph import Node, Value
from regraft.ir.ops import (
    arithmetic,
    cast,
    gathering,
    norm,
    repeating,
    reshaping,
    slicing,
)
from regraft.passes.analysis.coupling import Coupling
from regraft.passes.analysis.coupling.builder import name_of
from regraft.passes.analysis.coupling.spaces import find
from regraft.passes.equivalence.scaling import Refused
from regraft.passes.quantization.sites import Linear, linears

Array = np.ndarray[Any, Any]

_MAX_BIAS = 1 << 22

_MOVES = frozenset(
    {gathering.gather, slicing.slice_, reshaping.reshape, reshaping.squeeze, reshaping.unsqueeze,
     repeating.expand, cast.identity}
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class ShiftPlan:
    """Where a shift is taken and given back.

    Args:
        value: What is shifted.
        maker: A norm, whose bias takes the shift, or the addition of a constant.
        readers: Linear layers, whose biases give it back.
    """

    value: Value
    maker: Node
    readers: tuple[Linear, ...]


def plan_shift(coupling: Coupling, value: Value) -> ShiftPlan | Refused:
    """Returns how numbers per channel of the last axis can be added to a value, all else equal."""
    module = coupling.module
    maker, name = value.producer, value.name or "a value"
    if maker is None:
        return Refused(name, "it is an input of the graph")
    if maker.op is norm.layer_norm:
        bias = maker.inputs[2] if len(maker.inputs) > 2 else None
        if maker.outputs[0] is not value or not (bias is None or is_constant(bias)):
            return Refused(name, "the bias of its norm is no constant")
        if maker.attrs["axis"] not in (-1, (value.rank or 0) - 1):
            return Refused(name, "its norm spans several axes")
    elif maker.op is not arithmetic.add or not any(
        is_constant(each) and each is not None and each.rank == 1 for each in maker.inputs
    ):
        return Refused(name_of(maker), f"{maker.op.name} has no bias per channel")
    by_node = {site.node: site for site in linears(module.graph)}
    readers: list[Linear] = []
    carried = [value]
    while carried:
        shifted = carried.pop()
        for user, slot in shifted.uses:
            if not isinstance(user, Node):
                return Refused(name, "it is an output of the graph")
            if slot == 0 and user in by_node:
                readers.append(by_node[user])
            elif slot == 0 and _keeps_channels(coupling, user):
                carried.append(user.output)
            else:
                return Refused(name_of(user), f"{user.op.name} reads it too and has no bias for it")
    return ShiftPlan(value, maker, tuple(readers))


def _keeps_channels(coupling: Coupling, node: Node) -> bool:
    """Whether a node moves rows about, channels staying where they are."""
    source = node.inputs[0]
    if node.op not in _MOVES or source is None:
        return False
    before, after = coupling.axes(source), coupling.axes(node.output)
    return bool(before and after) and find(before[-1]) is find(after[-1])


def apply_shift(plan: ShiftPlan, shift: Array) -> None:
    """Adds f64[K] to the value and takes `shift . W` from what its readers give."""
    for site in plan.readers:
        given = shift @ site.matrix().astype(np.float64)
        last, bias = site.with_bias()
        if last.graph is None:
            raise AssertionError("the reader is in a graph")
        b = Builder(last.graph, last, last.loc)
        known = None if bias is None else constant_of(bias, _MAX_BIAS)
        if known is not None and bias is not None:
            slot = next(idx for idx, each in enumerate(last.inputs) if each is bias)
            shifted = (known.astype(np.float64) - given).astype(known.dtype)
            last.set_operand(slot, b.constant(shifted, name=f"{site.name}.shifted_bias"))
            continue
        product = b.op(last.op, *last.inputs, **dict(last.attrs))
        moved = b.op(arithmetic.sub, product, b.constant(given.astype(np.float32)))
        last.graph.replace(last, [moved])
    _shift_maker(plan, shift)


def _shift_maker(plan: ShiftPlan, shift: Array) -> None:
    maker = plan.maker
    if maker.graph is None:
        raise AssertionError("the maker is in a graph")
    b = Builder(maker.graph, maker, maker.loc)
    if maker.op is norm.layer_norm:
        slot = 2
        old = constant_of(maker.inputs[2], _MAX_BIAS) if len(maker.inputs) > 2 else None
    else:
        slot = next(i for i, each in enumerate(maker.inputs) if is_constant(each))
        old = constant_of(maker.inputs[slot], _MAX_BIAS)
    total = shift if old is None else old.astype(np.float64) + shift
    maker.set_operand(slot, b.constant(total.astype(np.float32), name="shifted_bias"))
