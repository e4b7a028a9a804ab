"""What a convolution costs in 8 bits and in float, and which of a module's gain from 8 bits.

Measured with ONNX Runtime 1.31 on one thread of an AVX-512 VNNI CPU: a dense float convolution does
55 to 110 GMAC/s; in 8 bits it is 2.3 to 3.8 times as fast where it sums 64 numbers and more (1.7 to
1.9 times at 16 to 32), 0.4 times where the input has 3 channels or 1, 0.98 to 1.5 times where every
channel is on its own. Quantizing and dequantizing take 0.07 to 0.2 ns a number each, as much again
for the layout that float kernels work in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from regraft.ir.graph import Node, Value

_DENSE_MAC_NS = 1 / 80
_DEPTHWISE_MAC_NS = 1 / 20
_CROSSING_NS = 0.25
_NODE_NS = 2000.0
"""What running one more node costs, however small."""
_JOIN_NS = 0.1
_FEW_CHANNELS = 8
_SHORT, _LONG = 64, 256
_NARROW_KERNEL = 9


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a convolution.

    Args:
        channels: Input channels of a group.
        outputs: Output channels.
        groups: Groups.
        window: Positions of the kernel.
        positions: Output numbers of one channel, over the batch.
    """

    channels: int
    outputs: int
    groups: int
    window: int
    positions: int

    @property
    def macs(self) -> int:
        """Products of one run."""
        return self.channels * self.window * self.outputs * self.positions

    @property
    def is_depthwise(self) -> bool:
        """Whether every channel is convolved on its own."""
        return self.groups > 1 and self.channels == 1


def speedup(shape: Shape) -> float:
    """Returns how many times as fast the 8-bit kernel is, without what crossing costs."""
    if shape.is_depthwise:
        return 1.1 if shape.window <= _NARROW_KERNEL else 0.75
    if shape.channels < _FEW_CHANNELS:
        return 0.4
    summed = shape.channels * shape.window
    return 1.7 if summed < _SHORT else 2.5 if summed < _LONG else 3.0


def float_ns(shape: Shape) -> float:
    """Returns how long the float convolution takes."""
    rate = _DEPTHWISE_MAC_NS if shape.is_depthwise else _DENSE_MAC_NS
    return shape.macs * rate


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """What runs in 8 bits as a whole or in float as a whole.

    Args:
        node: The convolution, or an operator that joins results.
        inputs: What it reads.
        result: What it hands on, after an activation that the kernel takes in.
        shape: Sizes of a convolution; None for what joins.
    """

    node: Node
    inputs: tuple[Value, ...]
    result: Value
    shape: Shape | None


def choose(pieces: Sequence[Piece], sizes: Mapping[Value, int]) -> tuple[set[int], dict[int, str]]:
    """Returns the pieces that run in 8 bits, by index, and why the others do not.

    Starts with all, and turns over one piece at a time while the whole gets faster.

    Args:
        pieces: What there is to choose.
        sizes: Numbers of every value that a piece reads or makes.
    """
    makers = {piece.result: idx for idx, piece in enumerate(pieces)}
    readers: dict[Value, list[int]] = {}
    for idx, piece in enumerate(pieces):
        for value in piece.inputs:
            readers.setdefault(value, []).append(idx)
    inside = set(range(len(pieces)))
    values = list(dict.fromkeys(v for p in pieces for v in (*p.inputs, p.result)))
    by_piece: dict[int, list[Value]] = {
        idx: list(dict.fromkeys((*piece.inputs, piece.result))) for idx, piece in enumerate(pieces)
    }
    known = set(values)

    def crossing(value: Value) -> float:
        """What it costs to bring one value from one side to the other."""
        made = makers.get(value)
        is_int = made is not None and made in inside
        reads = readers.get(value, [])
        others = value.num_uses > len(reads)  # by something that is no piece, or returned
        wants_int = any(idx in inside for idx in reads)
        wants_float = others or any(idx not in inside for idx in reads)
        cost = 0.0
        if wants_int and not is_int:
            cost += _CROSSING_NS * sizes[value] + _NODE_NS
        if is_int and wants_float:
            cost += _CROSSING_NS * sizes[value] + _NODE_NS
        return cost

    def own(idx: int) -> float:
        shape = pieces[idx].shape
        if shape is None:
            return _JOIN_NS * sizes[pieces[idx].result] * (1 if idx in inside else 2)
        time = float_ns(shape)
        return time / speedup(shape) if idx in inside else time

    def local(idx: int) -> float:
        return own(idx) + sum(crossing(value) for value in by_piece[idx] if value in known)

    changed = True
    while changed:
        changed = False
        for idx in range(len(pieces)):
            before = local(idx)
            inside ^= {idx}
            if local(idx) < before * (1 - 1e-9):
                changed = True
            else:
                inside ^= {idx}
    return inside, dict(_reasons(pieces, inside))


def _reasons(pieces: Sequence[Piece], inside: set[int]) -> Iterator[tuple[int, str]]:
    for idx, piece in enumerate(pieces):
        if idx in inside or piece.shape is None:
            continue
        shape = piece.shape
        if shape.is_depthwise:
            yield idx, "depthwise: its kernel of 8 bits gains less than crossing to it costs"
        elif shape.channels < _FEW_CHANNELS:
            yield idx, f"{shape.channels} input channels: the 8-bit kernel takes twice as long"
        else:
            yield (
                idx,
                (
                    f"{shape.macs / 1e6:.1f}M products gain less than quantizing its input and "
                    "dequantizing its result cost"
                ),
            )
