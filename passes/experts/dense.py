"""The weights of a feed-forward block as plain matrices, and whether it can become experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.constants import constant_of, weight
from regraft.ir.graph import Node, Value
from regraft.ir.ops import cast, linalg, reshaping, slicing
from regraft.ir.ops.moe_hidden import ACTIVATIONS
from regraft.passes.analysis.ffn import FfnBlock
from regraft.passes.analysis.linear_layers import MOVES, Linear, moved_axis

Array = np.ndarray[Any, Any]

_ANY_SIZE = 1 << 62


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """The weights of one feed-forward block, in the type of its checkpoint.

    Args:
        up: f[F, D].
        down: f[O, F].
        gate: f[F, D], or None.
        up_bias: f[F], or None.
        gate_bias: f[F], or None.
        down_bias: f[O], or None.
    """

    up: Array
    down: Array
    gate: Array | None = None
    up_bias: Array | None = None
    gate_bias: Array | None = None
    down_bias: Array | None = None

    @property
    def hidden(self) -> int:
        """How many hidden channels there are."""
        return int(self.up.shape[0])


def refusal(block: FfnBlock) -> str | None:
    """Returns why a block cannot become experts, None where it can."""
    layers = [layer for layer in (block.up, block.gate, block.down) if layer is not None]
    if block.is_expert or any(layer.num_experts > 1 or layer.picked for layer in layers):
        return "its weights are those of experts already"
    if block.norm is not None:
        return "a norm of the hidden channels"
    if block.depthwise is not None:
        return "a convolution between its layers mixes positions"
    if block.activation not in ACTIVATIONS or (
        block.function.name == "relu2" and (block.function.attrs)
    ):
        return f"the operator `moe` has no activation `{block.activation}` with these parameters"
    if block.gate is block.up and block.parts is None:
        return "what its halves are is not static"
    x, out = block.up.input, block.down.output
    if x.shape is None or out.shape is None or not isinstance(block.hidden, int):
        return "its sizes are not known"
    values = [x, out, *(layer.weight for layer in layers)]
    if len({value.dtype for value in values}) > 1:
        return "its weights and values are of several types"
    return _unread(layers) or _moves_positions(block)


def _unread(layers: list[Linear]) -> str | None:
    """Returns why weights cannot be read, None where they can."""
    for layer in layers:
        if any(constant_of(value, _ANY_SIZE) is None for value in _constants(layer)):
            return "its weights follow from other constants: run `canonicalize` before"
        if layer.nodes[-1].op is linalg.gemm and any(
            layer.nodes[-1].attrs[name] != 1 for name in ("alpha", "beta")
        ):
            return "`gemm` scales"
        if layer.bias is not None and not _is_per_channel(layer):
            return f"the bias `{layer.bias.name}` is not one number per channel"
    return None


def _constants(layer: Linear) -> list[Value]:
    return [layer.weight] if layer.bias is None else [layer.weight, layer.bias]


def _is_per_channel(layer: Linear) -> bool:
    assert layer.bias is not None, "asked of layers with a bias"
    shape = layer.bias.shape
    if shape is None:
        return False
    if layer.is_convolution and layer.nodes[-1].inputs[2] is layer.bias:
        return True
    if not all(isinstance(size, int) for size in shape):
        return False
    rest = [size for axis, size in enumerate(shape) if axis - len(shape) != layer.out_axis]
    return all(size == 1 for size in rest)


def _moves_positions(block: FfnBlock) -> str | None:
    """Returns what lies between the layers and keeps positions from being in one order."""
    layers = [layer for layer in (block.up, block.gate) if layer is not None]
    axes = {layer.output: layer.out_axis for layer in layers}
    last = block.up.out_axis
    for node in sorted(block.between, key=lambda node: node.order):
        x, out = node.inputs[0], node.outputs[0]
        if x is None or (node.op is cast.cast and x.dtype is not out.dtype):
            return "values between its layers are of another type"
        if node.op not in MOVES and node.op not in (slicing.split, slicing.slice_):
            return f"`{node.op.name}` between its layers"
        axis = axes.get(x, last)  # behind the activation the channels are where they were
        moved = moved_axis(node, axis) if node.op in MOVES else axis
        if moved is None or (
            node.op is reshaping.transpose and not _keeps_order(node, axis, moved)
        ):
            return f"`{node.op.name}` between its layers reorders positions"
        axes |= dict.fromkeys(node.outputs, moved)
        last = moved
    return None


def _keeps_order(node: Node, axis: int, moved: int) -> bool:
    """Returns whether a transpose that moves `axis` to `moved` leaves the other axes in order."""
    rank = node.outputs[0].rank or 0
    perm = list(node.attrs["perm"] or range(rank)[::-1])
    assert perm.pop(moved) == axis + rank, "the axis that moves"
    return perm == sorted(perm)


def content_of(value: Value) -> Array:
    """Returns the content of a constant."""
    array = constant_of(value, _ANY_SIZE)
    assert array is not None, "refused otherwise"
    return array


def dense_of(block: FfnBlock, content: Callable[[Value], Array] = content_of) -> Dense:
    """Reads the weights of a block; `refusal` found nothing.

    Args:
        block: The block.
        content: Gives the array of a weight or bias: its content, or one of that shape.
    """
    up, up_bias = _read(block.up, content)
    down, down_bias = _read(block.down, content)
    if block.gate is None:
        return Dense(up, down, None, up_bias, None, down_bias)
    gate, gate_bias = (up, up_bias) if block.gate is block.up else _read(block.gate, content)
    if block.gate is block.up:
        assert block.parts is not None, "refused otherwise"
        ours, theirs = (list(part) for part in block.parts)
        up, gate = up[ours], gate[theirs]
        if up_bias is not None and gate_bias is not None:
            up_bias, gate_bias = up_bias[ours], gate_bias[theirs]
    return Dense(up, down, gate, up_bias, gate_bias, down_bias)


def _read(layer: Linear, content: Callable[[Value], Array]) -> tuple[Array, Array | None]:
    """Returns a layer's weight [out, in] and bias [out]."""
    array = content(layer.weight)
    turned = np.moveaxis(array, (layer.weight_out, layer.weight_in), (0, 1))
    matrix = turned.reshape(turned.shape[:2])
    if layer.bias is None:
        return matrix, None
    flat = np.broadcast_to(content(layer.bias).reshape(-1), (matrix.shape[0],))
    return matrix, flat


def identity_of(block: FfnBlock) -> tuple[object, ...]:
    """Returns what is equal for blocks of the same weights: tied layers stay tied."""
    layers = [layer for layer in (block.up, block.gate, block.down) if layer is not None]
    return tuple(_name(value) for layer in layers for value in (layer.weight, layer.bias))


def _name(value: Value | None) -> object:
    if value is None or value.producer is None or value.producer.op is not weight:
        return value
    return value.producer.attrs["name"]
