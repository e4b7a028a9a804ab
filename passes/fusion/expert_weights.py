"""The weights of a layer of experts as the operator `moe` reads them, made of the graph's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of
from regraft.ir.dims import DimLike
from regraft.ir.graph import Node, Value
from regraft.ir.ops import (
    activation,
    arithmetic,
    functions,
    gathering,
    moe,
    reshaping,
    slicing,
)
from regraft.passes.analysis.expert_shares import ExpertSum
from regraft.passes.analysis.ffn import FfnBlock
from regraft.passes.analysis.gate_bounds import GateBounds
from regraft.passes.analysis.linear_layers import MOVES, Linear, only_user, picking_of
from regraft.passes.cleanup.facts import uniform

_MAX_STEPS = 12


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """One matrix per expert, and its bias.

    Args:
        layers: One layer with stacked weights, or one per expert.
        channels: Which of its results are read, None for all.
        bias: Of a layer whose matrices are picked, one row per expert; else None.
    """

    layers: tuple[Linear, ...]
    channels: range | None
    bias: Value | None


@dataclass(frozen=True, slots=True, eq=False)
class ExpertWeights:
    """Everything that the operator reads of the experts.

    Args:
        up: The layer of the hidden channels.
        gate: The layer of the gate, or None.
        down: The last layer.
        num_experts: How many experts there are.
        channels: How many channels they read.
        activation: As the operator names it.
        bounds: Attributes of the operator: limits and offset.
    """

    up: Stack
    gate: Stack | None
    down: Stack
    num_experts: int
    channels: DimLike
    activation: str
    bounds: Mapping[str, Any]

    def write(self, b: Builder, factor: Value | None = None) -> list[Value | None]:
        """Returns the operands of `moe` from `up` on.

        Args:
            b: Writes them.
            factor: Multiplies what experts give, [O].
        """
        up, down = (_matrices(b, each, self.num_experts) for each in (self.up, self.down))
        gate = None if self.gate is None else _matrices(b, self.gate, self.num_experts)
        biases = [
            None if each is None else _biases(b, each, self.num_experts)
            for each in (self.up, self.down, self.gate)
        ]
        if factor is not None:
            own = b.op(reshaping.reshape, factor, shape=(1, *(factor.shape or ()), 1))
            down = b.op(arithmetic.mul, down, own)
            biases[1] = None if biases[1] is None else b.op(arithmetic.mul, biases[1], factor)
        operands = [up, down, gate, *biases]
        while operands[-1] is None:
            operands.pop()
        return operands


def expert_weights(total: ExpertSum) -> ExpertWeights | str:
    """Returns the weights of a layer's experts, or why the operator cannot read them."""
    experts = total.block.experts
    first = experts[0]
    count = first.num_experts if first.num_experts > 1 else len(experts)
    name = first.activation
    if name not in moe.ACTIVATIONS or (name == "relu2" and first.function.attrs):
        return f"the operator `moe` has no activation `{name}` with these parameters"
    if any(_form(each) != _form(first) for each in experts):
        return "its experts are not of one form"
    if first.gate is first.up and first.parts is None:
        return "what its halves are is not static"
    if first.up.in_size is None:
        return "its sizes are not known"
    bounds = _bounds(first)
    if isinstance(bounds, str):
        return bounds
    ours, theirs = (None, None) if first.parts is None else first.parts
    ups, downs = tuple(e.up for e in experts), tuple(e.down for e in experts)
    gates = tuple(e.gate for e in experts if e.gate is not None)
    if first.gate is None:
        ours = None
    elif first.gate is not first.up:
        ours, theirs = None, None
    found = ExpertWeights(
        Stack(ups, ours, _picked_rows(first.up)),
        Stack(gates, theirs, _picked_rows(gates[0])) if gates else None,
        Stack(downs, None, _picked_rows(first.down)),
        count, first.up.in_size, name, bounds,
    )  # fmt: skip
    for stack in (found.up, found.gate, found.down):
        if stack is not None and (reason := _unreadable(stack, count)):
            return reason
    return found


def _form(expert: FfnBlock) -> tuple[object, ...]:
    layers = [each for each in (expert.up, expert.gate, expert.down) if each is not None]
    sizes = [(each.in_size, each.out_size, each.bias is None) for each in layers]
    return expert.activation, expert.gate is expert.up, expert.parts, expert.hidden, *sizes


def _bounds(expert: FfnBlock) -> Mapping[str, Any] | str:
    """Returns limits and offset, or what lies between the layers that the operator does not do."""
    allowed = (*MOVES, slicing.split, slicing.slice_)
    own = expert.bounds
    highest: set[float] = set()
    num_low, offset = 0, 0.0
    for node in expert.between:
        if node.op in allowed or (own is not None and node in own.nodes):
            continue
        if own is not None and own.kind == "soft" and node.op in _SOFT:
            continue
        if node.op is activation.clip:
            low, high = (node.attrs["min"], node.attrs["max"])
            if high is None or low not in (None, -high):
                return "a clip that is no limit on both sides"
            highest.add(float(high))
            num_low += low is not None
            continue
        if node.op is arithmetic.add:
            added = [number for v in node.inputs if (number := uniform(v)) is not None]
            if len(added) == 1 and not offset:
                offset = float(added[0])
                continue
            if any(v is not None and _picked_row(v, expert.up) for v in node.inputs):
                continue
        return f"`{node.op.name}` between its layers"
    if (offset or highest) and expert.gate is None:
        return "a number is added to its hidden channels, or a limit without a gate"
    return _limits(own, highest, num_low, offset)


def _limits(
    own: GateBounds | None, highest: set[float], num_low: int, offset: float
) -> Mapping[str, Any] | str:
    """Returns attributes of the operator for the clips of gate and values.

    Args:
        own: Of the gate, where they are no clip of what its activation reads.
        highest: Upper bounds of all clips.
        num_low: How many of them have a lower bound.
        offset: What is added to the values.
    """
    if own is not None and own.values is not None:
        highest.add(own.values)
        num_low += 1
    if own is not None and not highest:
        return "its gate has a limit, and what it multiplies has none"
    if highest and (len(highest) > 1 or num_low != 1):
        return "limits that are not one number for gate and values"
    found = {"limit": highest.pop() if highest else 0.0, "up_offset": offset}
    return found if own is None else {**found, "bounds": own.kind, "gate_limit": own.limit}


_SOFT = frozenset({arithmetic.mul, arithmetic.div, functions.tanh})


def _picked_row(value: Value, layer: Linear) -> Value | None:
    """Returns the table [E, n] of which a value holds the picked rows, or None.

    Whether rows that are sorted are those of their own experts is proved with the whole layer.
    """
    while (node := value.producer) is not None and node.op in MOVES and node.inputs[0] is not None:
        value = node.inputs[0]
    node = picking_of(value, max_rank=2)
    if node is None or node.inputs[0] is None:
        return None
    if layer.owners is not None:
        table = node.inputs[0].shape
        return node.inputs[0] if table is not None and table[0] == layer.num_experts else None
    if layer.picked is None or node.inputs[1] is not layer.picked:
        return None
    return node.inputs[0]


def _picked_rows(layer: Linear) -> Value | None:
    """Returns the table of biases of a layer whose matrices are picked, or None."""
    value = layer.output
    is_picked = layer.picked is not None or layer.owners is not None
    for _ in range(_MAX_STEPS if is_picked else 0):
        node = only_user(value)
        if node is None:
            return None
        if node.op is arithmetic.add:
            rows = [_picked_row(v, layer) for v in node.inputs if v is not None and v is not value]
            return rows[0] if rows else None
        if node.op not in MOVES:
            return None
        value = node.output
    return None


def _unreadable(stack: Stack, count: int) -> str | None:
    first = stack.layers[0]
    for layer in stack.layers:
        shape = layer.weight.shape
        if shape is None or not all(isinstance(size, int) for size in shape):
            return f"the sizes of `{layer.weight.name}` are not known"
        if layer.is_convolution or any(
            layer.nodes[-1].attrs.get(name, 1) != 1 for name in ("alpha", "beta")
        ):
            return "experts of convolutions, or products with a factor"
        sizes = layer.bias.shape if layer.bias is not None else ()
        if sizes is None or not all(isinstance(size, int) for size in sizes):
            return "the sizes of a bias are not known"
        wanted = count if len(stack.layers) == 1 else 1
        if layer.bias is not None and (
            _elements(sizes) != wanted * _size(layer.out_size) or sizes[-1] != layer.out_size
        ):
            return f"the bias `{layer.bias.name}` is not one number per expert and channel"
    if len(stack.layers) == 1 and (first.weight.rank != 3 or first.num_experts != count):
        return f"`{first.weight.name}` is not one matrix per expert"
    return None


def _elements(sizes: Sequence[DimLike]) -> int:
    return int(np.prod([size for size in sizes if isinstance(size, int)], dtype=np.int64))


def _size(size: DimLike | None) -> int:
    assert isinstance(size, int), "checked before"
    return size


def _matrices(b: Builder, stack: Stack, count: int) -> Value:
    """Returns the matrices [E, out, in]."""
    value, turned = _one_stack(stack, count)
    if value is None:
        rows = []
        for layer in stack.layers:
            matrix = layer.weight
            if layer.weight_in == -2:
                matrix = b.op(reshaping.transpose, matrix, perm=(1, 0))
            rows.append(b.op(reshaping.unsqueeze, matrix, axes=(0,)))
        value = b.op(slicing.concat, *rows, axis=0)
    elif turned:
        value = b.op(reshaping.transpose, value, perm=(0, 2, 1))
    return _part(b, value, stack.channels)


def _one_stack(stack: Stack, count: int) -> tuple[Value | None, bool]:
    """Returns the tensor that holds all matrices in order, and whether they lie [in, out]."""
    first = stack.layers[0]
    if len(stack.layers) == 1:
        return first.weight, first.weight_in == -2
    found: set[tuple[Value, bool]] = set()
    for expert, layer in enumerate(stack.layers):
        value, is_turned = layer.weight, layer.weight_in == -2
        while (node := value.producer) is not None and node.op is reshaping.transpose:
            assert node.inputs[0] is not None, "it has an operand"
            value, is_turned = node.inputs[0], not is_turned
        if node is None or not _takes(node, expert) or node.inputs[0] is None:
            return None, False
        found.add((node.inputs[0], is_turned))
    ((value, is_turned), *more) = found
    if more or value.rank != 3 or value.shape is None or value.shape[0] != count:
        return None, False
    return value, is_turned


def _takes(node: Node, expert: int) -> bool:
    """Returns whether a node takes one expert's matrix of a stack."""
    if node.op is not gathering.gather or node.attrs["axis"] != 0:
        return False
    index = constant_of(node.inputs[1])
    return index is not None and index.ndim == 0 and int(index) == expert


def _biases(b: Builder, stack: Stack, count: int) -> Value | None:
    """Returns the biases [E, out], None where there are none."""
    value = stack.bias
    if value is None:
        rows = [layer.bias for layer in stack.layers if layer.bias is not None]
        if not rows:
            return None
        size = stack.layers[0].out_size
        shape = (count if len(rows) == 1 else 1, _size(size))
        flat = [b.op(reshaping.reshape, row, shape=shape) for row in rows]
        value = flat[0] if len(flat) == 1 else b.op(slicing.concat, *flat, axis=0)
    return _part(b, value, stack.channels)


def _part(b: Builder, value: Value, channels: range | None) -> Value:
    """Returns some of the channels of [E, out, …]."""
    size = None if value.shape is None else value.shape[1]
    if channels is None or (isinstance(size, int) and channels == range(size)):
        return value
    return b.op(
        slicing.slice_, value, starts=(channels.start,), ends=(channels.stop,), axes=(1,),
        steps=(channels.step,),
    )  # fmt: skip
