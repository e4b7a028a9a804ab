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
_CROSSING_NS = 0.6
_NODE_NS = 5000.0
"""What running one more node costs, however small."""
LEAST_GAIN = 0.1
"""Below it the costs are not sure enough: small networks came out slower."""
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


def choose(
    pieces: Sequence[Piece],
    sizes: Mapping[Value, int],
    price_ns: Mapping[int, float] | None = None,
    least_gain: float = LEAST_GAIN,
) -> tuple[set[int], dict[int, str]]:
    """Returns the pieces that run in 8 bits, by index, and why the others do not.

    Starts with all, and turns over one piece at a time while the whole gets faster.

    Args:
        pieces: What there is to choose.
        sizes: Numbers of every value that a piece reads or makes.
        price_ns: What 8 bits of a piece have to gain beside, 0 for those not given.
        least_gain: Part of the time of all that the whole has to gain.
    """
    cut = _Cut(pieces, sizes, set(range(len(pieces))), price_ns or {})
    changed = True
    while changed:
        changed = sum(map(cut.turn, range(len(pieces)))) > 0
    alone = _Cut(pieces, sizes, set()).total()
    if _Cut(pieces, sizes, cut.inside).total() < (1 - least_gain) * alone:
        return cut.inside, dict(_reasons(pieces, cut.inside))
    reason = f"8 bits gain less than {least_gain:.0%} of the time of all convolutions"
    return set(), {idx: reason for idx, piece in enumerate(pieces) if piece.shape is not None}


class _Cut:
    """Pieces in 8 bits, and what they and their borders cost."""

    def __init__(
        self, pieces: Sequence[Piece], sizes: Mapping[Value, int], inside: set[int],
        price_ns: Mapping[int, float] | None = None,
    ) -> None:  # fmt: skip
        self.price_ns = price_ns or {}
        self.pieces = pieces
        self.sizes = sizes
        self.inside = inside
        self.values = [list(dict.fromkeys((*p.inputs, p.result))) for p in pieces]
        self._maker = {piece.result: idx for idx, piece in enumerate(pieces)}
        self._readers: dict[Value, list[int]] = {}
        for idx, piece in enumerate(pieces):
            for value in piece.inputs:
                self._readers.setdefault(value, []).append(idx)

    def turn(self, idx: int) -> bool:
        """Takes a piece to the other side if that is faster; returns whether it is."""
        before = self._local(idx)
        self.inside ^= {idx}
        if self._local(idx) < before * (1 - 1e-9):
            return True
        self.inside ^= {idx}
        return False

    def total(self) -> float:
        """Returns the time of all, in ns."""
        every = dict.fromkeys(value for values in self.values for value in values)
        return sum(map(self._own, range(len(self.pieces)))) + sum(map(self._crossing, every))

    def _local(self, idx: int) -> float:
        return self._own(idx) + sum(map(self._crossing, self.values[idx]))

    def _own(self, idx: int) -> float:
        shape = self.pieces[idx].shape
        beside = self.price_ns.get(idx, 0.0) if idx in self.inside else 0.0
        if shape is None:
            join = _JOIN_NS * self.sizes[self.pieces[idx].result]
            return beside + join * (1 if idx in self.inside else 2)
        time = float_ns(shape)
        return beside + time / speedup(shape) if idx in self.inside else time

    def _crossing(self, value: Value) -> float:
        """What it costs to bring one value from one side to the other."""
        made = self._maker.get(value) in self.inside
        reads = self._readers.get(value, [])
        others = value.num_uses > len(reads)  # by something that is no piece, or returned
        if made:
            crosses = others or any(idx not in self.inside for idx in reads)
        else:
            crosses = any(idx in self.inside for idx in reads)
        return _CROSSING_NS * self.sizes[value] + _NODE_NS if crosses else 0.0


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
