"""Feed-forward blocks: linear, activation, linear, with or without a gate, over any axis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from regraft.ir.dims import DimLike, known_equal
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import (
    activation,
    arithmetic,
    conv,
    gathering,
    norm,
    pool,
    reduce,
    reshaping,
    slicing,
)
from regraft.passes.analysis.gate_bounds import GateBounds, bounded_gate, soft_cap
from regraft.passes.analysis.halves import channels_of, cuts, start_of
from regraft.passes.analysis.linear_layers import (
    MOVES,
    IsConstant,
    Linear,
    linear_layers,
    moved_axis,
    only_user,
    picking_of,
)
from regraft.passes.analysis.norms import NormBlock
from regraft.passes.analysis.unary_functions import SATURATING, Activation, UnaryFunction

_MAX_STEPS = 12
"""Most nodes of data movement between two parts of a block."""


@dataclass(frozen=True, slots=True, eq=False)
class FfnBlock:
    """A feed-forward block.

    Args:
        input: What the first layers read.
        output: The result of the last layer, its bias included.
        up: The layer that makes the hidden channels (of a gated block: those that are gated).
        gate: The layer under the activation of a gated block, else None. It is the layer `up` when
            one product makes both halves.
        down: The layer that reads the hidden channels.
        activation: `gelu`, `silu`, `relu2`, …
        hidden: Number of hidden channels.
        axis: The axis of `input` that the layers mix, counted from the end.
        norm: A norm of the hidden channels before `down`, or None.
        depthwise: A convolution of single or few channels between the layers, or None.
        is_expert: Whether it reads tokens that were picked at run time.
        nodes: What computes it.
        function: The activation, with its parameters.
        parts: Of a product that makes both halves, the channels that are gated and those of the
            gate, in this order; else None.
        between: What lies between the layers, the activation and the gating aside.
        bounds: Of the gate, where they are no clip of what the activation reads.
    """

    input: Value
    output: Value
    up: Linear
    gate: Linear | None
    down: Linear
    activation: str
    hidden: DimLike
    axis: int
    norm: NormBlock | None
    depthwise: Node | None
    is_expert: bool
    nodes: tuple[Node, ...]
    function: UnaryFunction
    parts: tuple[range, range] | None
    between: tuple[Node, ...]
    bounds: GateBounds | None = None

    @property
    def num_experts(self) -> int:
        """How many experts are stacked in its weights."""
        return self.up.num_experts

    def describe(self) -> dict[str, object]:
        """Returns it as JSON data."""
        return {
            "input": self.input.name,
            "output": self.output.name,
            "activation": self.activation,
            "gated": self.gate is not None,
            "hidden": self.hidden if isinstance(self.hidden, int) else str(self.hidden),
            "axis": self.axis,
            "convolution": self.down.is_convolution,
            "depthwise": self.depthwise is not None,
            "weights": {
                "up": self.up.weight.name,
                "gate": None if self.gate is None else self.gate.weight.name,
                "down": self.down.weight.name,
            },
        }


@dataclass(frozen=True, slots=True)
class _Source:
    """A linear layer found on the way back from a value.

    Args:
        layer: The layer.
        axis: The axis of the value that holds the layer's channels.
        part: Which part of the channels: the index of a split's result or the start of a slice,
            None for all.
        channels: Which of the layer's channels the part is, None where that is not known.
        convolution: A convolution of groups of channels on the way, or None.
        nodes: What lies between.
    """

    layer: Linear
    axis: int
    part: DimLike | None
    channels: range | None
    convolution: Node | None
    nodes: tuple[Node, ...]


class FfnFinder:
    """Finds the feed-forward blocks of one graph around its activations."""

    def __init__(self, graph: Graph, is_constant: IsConstant, norms: Sequence[NormBlock]) -> None:
        self.layers = linear_layers(graph, is_constant)
        self._readers: dict[Value, list[Linear]] = {}
        for layer in self.layers.values():
            self._readers.setdefault(layer.input, []).append(layer)
        self._norms = {block.input: block for block in norms}
        self._is_constant = is_constant
        self._activated: set[Value] = set()
        self._activations: dict[Value, Activation] = {}
        self._choices = {layer.picked for layer in self.layers.values()} - {None}
        layers = self.layers.values()
        self._sorted = {each.num_experts for each in layers if each.owners is not None}

    def find(self, activations: Sequence[Activation]) -> list[FfnBlock]:
        """Returns the blocks in order of their activations."""
        self._activated = {each.input for each in activations}
        self._activations = {each.output: each for each in activations}
        return [block for each in activations if (block := self._block(each)) is not None]

    def _block(self, found: Activation) -> FfnBlock | None:
        first = self._source(found.input)
        if first is None:
            return None
        hidden, nodes = found.output, [*found.nodes, *first.nodes]
        up, gate, moves = first, None, [*first.nodes]
        bounds = bounded_gate(found)
        if bounds is not None:
            hidden = bounds.output
            nodes += bounds.nodes
            moves += bounds.nodes
        user = only_user(hidden)
        if user is None:
            return None
        if user.op is arithmetic.mul:
            other = user.inputs[1] if user.inputs[0] is hidden else user.inputs[0]
            cap = None if other is None or bounds is None else soft_cap(other)
            if cap is not None and bounds is not None and bounds.kind == "soft":
                other, bounds = cap.input, replace(bounds, values=cap.limit)
                nodes += cap.nodes
                moves += cap.nodes
            second = None if other is None else self._source(other)
            if second is None or not _are_halves(first, second):
                return None
            up, gate = second, first
            hidden = user.output
            nodes += [user, *second.nodes]
            moves += second.nodes
        if gate is None and (first.part is not None or bounds is not None):
            return None  # a half of a product alone, or a clip between two layers
        down, inner_norm, between = self._reader(hidden, first.axis)
        if down is None:
            return None
        nodes += [*between, *down.nodes]
        moves += between
        ours, theirs = up.channels, first.channels
        parts = None if ours is None or theirs is None else (ours, theirs)
        layers = {id(each.layer): each.layer for each in (first, up)}
        for layer in layers.values():
            nodes += layer.nodes
        size = down.in_size
        if size is None or not self._is_block(up.layer, down):
            return None
        source, mixed = _untransposed(up.layer.input, up.layer.in_axis)
        is_expert = picking_node(up.layer.input, self._is_constant) is not None
        return FfnBlock(
            source, down.output, up.layer, None if gate is None else gate.layer, down,
            "silu" if bounds is not None and bounds.kind == "soft" else found.function.name,
            size, mixed, inner_norm, first.convolution, is_expert,
            tuple(dict.fromkeys(nodes)), found.function, parts, tuple(dict.fromkeys(moves)), bounds,
        )  # fmt: skip

    def _source(self, value: Value) -> _Source | None:
        """Returns the linear layer whose result, moved, halved or convolved, a value is."""
        steps: list[Node] = []
        part: DimLike | None = None
        channels: range | None = None
        convolution: Node | None = None
        while value not in self.layers:
            inner = self._activations.get(value)
            if inner is not None and convolution is not None and not _is_depthwise(convolution):
                # a grouped convolution between two activations; one that is depthwise is the
                # inverted residual of convolutional networks
                steps += inner.nodes
                value = inner.input
                continue
            node = value.producer
            if node is None or len(steps) >= _MAX_STEPS:
                return None
            if node.op is slicing.split:
                part, channels = value.index, channels_of(value, node)
            elif node.op is slicing.slice_:
                part, channels = start_of(node), channels_of(value, node)
            elif _is_grouped(node):
                convolution = node
            elif node.op not in MOVES and node.op not in _PER_CHANNEL:
                return None
            steps.append(node)
            source = self._varying(node)
            if source is None:
                return None
            value = source
        layer = self.layers[value]
        axis = _followed(layer.out_axis, reversed(steps))
        return None if axis is None else _Source(
            layer, axis, part, channels, convolution, tuple(steps)
        )  # fmt: skip

    def _varying(self, node: Node) -> Value | None:
        """Returns the one operand that varies; a bias picked for an expert counts as constant."""
        values = [
            v for v in node.inputs
            if v is not None and not self._is_constant(v) and not self._is_picked_bias(v)
        ]  # fmt: skip
        return values[0] if len(values) == 1 else None

    def _is_picked_bias(self, value: Value) -> bool:
        node = picking_of(value)
        if node is None or node.inputs[0] is None or not self._is_constant(node.inputs[0]):
            return False
        table = node.inputs[0].shape or ()
        return node.inputs[1] in self._choices or (len(table) == 2 and table[0] in self._sorted)

    def _reader(
        self, value: Value, axis: int | None
    ) -> tuple[Linear | None, NormBlock | None, list[Node]]:
        """Returns the layer that sums over the hidden channels, and what lies between."""
        nodes: list[Node] = []
        inner: NormBlock | None = None
        while axis is not None and len(nodes) < _MAX_STEPS:
            here = self._norms.get(value)
            if here is not None and inner is None and here.axes == (axis,):
                inner, value = here, here.output
                nodes += here.nodes
                continue
            readers = self._readers.get(value)
            node = only_user(value)
            if node is None:
                return None, None, []
            if readers:
                layer = readers[-1]  # the one with its bias
                fits = layer.in_axis == axis and layer.nodes[-1] is node
                return (layer if fits else None), inner, nodes
            if node.op not in MOVES:
                return None, None, []
            axis, value = moved_axis(node, axis), node.output
            nodes.append(node)
        return None, None, []

    def _is_block(self, up: Linear, down: Linear) -> bool:
        """Returns whether two layers around an activation are a block, not a head or a gate."""
        before, after = up.in_size, down.out_size
        if before is None or after is None or not known_equal(before, after):
            return False  # a head or a projection into another space
        if self._feeds_activation(down.output):
            return False  # one more layer of a plain perceptron, or a gate
        return not _is_pooled(up.input, self._is_constant)

    def _feeds_activation(self, value: Value) -> bool:
        for _ in range(_MAX_STEPS):
            if value in self._activated:
                return True
            node = only_user(value)
            if node is None:
                return False
            if node.op.name in SATURATING:
                return True
            if node.op not in MOVES:
                # squeeze-and-excitation of two poolings sums before it gates
                after = only_user(node.output)
                gates = after is not None and after.op.name in ("sigmoid", "hard_sigmoid")
                return node.op is arithmetic.add and gates
            value = node.output
        return False


def _followed(axis: int, nodes: Iterable[Node]) -> int | None:
    """Returns where the channels of a layer are after nodes that move, halve or convolve them."""
    for node in nodes:
        at = axis
        if node.op in MOVES:
            moved = moved_axis(node, axis)
            if moved is None:
                return None
            at = moved
        elif node.op is conv.conv or node.op is norm.batch_norm:
            if node.output.rank != 1 - axis:
                return None
        elif node.op in (slicing.split, slicing.slice_) and not cuts(node, axis):
            return None
        axis = at
    return axis


def _are_halves(first: _Source, second: _Source) -> bool:
    """Returns whether two sources are two layers on one input, or two parts of one layer."""
    if first.layer is second.layer:
        return first.part is not None and second.part is not None and first.part != second.part
    return first.layer.input is second.layer.input and first.part is None and second.part is None


def _untransposed(value: Value, axis: int) -> tuple[Value, int]:
    """Returns what a value is a transpose of, and where its axis was: mixers mix positions."""
    node = value.producer
    while node is not None and node.op is reshaping.transpose and node.inputs[0] is not None:
        perm = node.attrs["perm"] or tuple(range(value.rank or 0))[::-1]
        axis = perm[axis] - len(perm)
        value = node.inputs[0]
        node = value.producer
    return value, axis


def _is_grouped(node: Node) -> bool:
    """Returns whether a node convolves groups of channels and keeps their number."""
    if node.op is not conv.conv or node.attrs["groups"] == 1:
        return False
    x, out = node.inputs[0], node.output.shape
    if x is None or x.shape is None or out is None:
        return False
    return known_equal(x.shape[1], out[1])


def _is_depthwise(node: Node) -> bool:
    """Returns whether a grouped convolution has one channel per group."""
    out = node.output.shape
    return out is not None and known_equal(out[1], node.attrs["groups"])


_PER_CHANNEL = frozenset({arithmetic.add, activation.clip, norm.batch_norm})
"""Operators that, with constants, change each channel by itself: biases, limits, folded norms."""

_POOLS = frozenset(
    {reduce.reduce_mean, reduce.reduce_max, reduce.reduce_sum, pool.average_pool, pool.max_pool}
)
_PICKS = frozenset({gathering.gather, gathering.gather_nd, gathering.gather_elements})


def _origin(value: Value, is_constant: IsConstant) -> Node | None:
    """Returns the node that a value comes from, data movement and constants' arithmetic aside."""
    for _ in range(_MAX_STEPS):
        node = value.producer
        if node is None:
            return None
        if node.op not in MOVES and node.op not in (arithmetic.mul, arithmetic.add):
            return node
        varying = [v for v in node.inputs if v is not None and not is_constant(v)]
        if len(varying) != 1:
            return node
        value = varying[0]
    return None


def _is_pooled(value: Value, is_constant: IsConstant) -> bool:
    """Returns whether a value holds one vector per sample: no position is left after a pooling."""
    node = _origin(value, is_constant)
    if node is None or node.op not in _POOLS:
        return False
    shape = node.output.shape
    if node.op in (pool.average_pool, pool.max_pool):
        return shape is not None and all(size == 1 for size in shape[2:])
    return True


def picking_node(value: Value, is_constant: IsConstant) -> Node | None:
    """Returns the gather that picked the tokens of a value at run time, or None."""
    node = _origin(value, is_constant)
    if node is None or node.op not in _PICKS:
        return None
    data, indices = node.inputs[0], node.inputs[1]
    if data is None or indices is None or is_constant(data) or is_constant(indices):
        return None
    return node
