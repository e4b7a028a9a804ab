"""Writes the kernel of a region with norms of groups of channels: a group per program.

A tile has some of a group's channels as rows and some of their planes as columns, so that what has
an element per channel is read once per row of the tile, and its gradient is a sum of that row. A
group that does not fit into one tile is gone through once per reduction that stands before another,
and once more to write; sums are kept per element of the tile until a pass ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regraft.backends.triton.chain_forms import FLOATS
from regraft.backends.triton.chain_kernel import PLACE, is_scalar
from regraft.backends.triton.chain_steps import Kind, Operand, Step
from regraft.backends.triton.gradient_outputs import Way
from regraft.ir.types import DType

SIZES = ("groups", "channels", "plane")
"""Arguments: groups of an image, channels of a group, elements of a channel."""
CONSTANTS = ("CHANNELS", "BLOCK", "SINGLE")


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that a kernel writes.

    Args:
        out: Its variable.
        variable: What is stored.
        way: `WHOLE`, `CHANNEL_PARTS` or `ROW_PARTS`.
        guard: The constant that says whether it is wanted; empty where it always is.
        is_bool: Whether it holds booleans.
    """

    out: str
    variable: str
    way: Way
    guard: str = ""
    is_bool: bool = False


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _guarded(stored: Stored, lines: Sequence[str]) -> list[str]:
    return [f"if {stored.guard}:", *_indented(lines)] if stored.guard else list(lines)


@dataclass(frozen=True, slots=True)
class GroupKernel:
    """A kernel of groups.

    Args:
        operands: What it reads.
        steps: What it computes.
        stores: What it writes.
    """

    operands: tuple[Operand, ...]
    steps: tuple[Step, ...]
    stores: tuple[Stored, ...]

    def lines(self, name: str, about: str) -> list[str]:
        """Returns the lines of the kernel.

        Args:
            name: Its name.
            about: What its docstring says that it writes.
        """
        pointers = [f"{op.name}_ptr" for op in self.operands]
        pointers += [f"{stored.out}_ptr" for stored in self.stores]
        guards = [stored.guard for stored in self.stores if stored.guard]
        scalars = [op for op in self.operands if is_scalar(op)]
        body = [
            f'"""{about}, a group of channels per program."""',
            "row = tl.program_id(0).to(tl.int64)",
            "first = row * channels",
            "N = channels * plane",
            *map(_load, scalars),
            "if SINGLE:",
            *_indented(self._whole()),
            "else:",
            *_indented(self._passes({op.name for op in scalars})),
        ]
        return [
            "@triton.jit",
            f"def {name}(",
            *(f"    {each}," for each in (*pointers, *SIZES)),
            *(f"    {each}: tl.constexpr," for each in (*CONSTANTS, *guards)),
            "):",
            *_indented(body),
        ]

    def _whole(self) -> list[str]:
        """Returns the lines about a group that one tile holds."""
        lines = ["channel = tl.arange(0, CHANNELS)", *_places("tl.arange(0, BLOCK)")]
        lines += [_load(op) for op in self.operands if not is_scalar(op)]
        for step in self.steps:
            lines += _statement(step, f"tl.sum(tl.where(mask, {step.text}, 0.0))")
        for stored in self.stores:
            sums = f"tl.sum(tl.where(mask, {stored.variable}, 0.0), axis=1)"
            lines += _guarded(stored, [_store(stored, sums)])
        return lines

    # -- groups of several tiles ------------------------------------------------------------

    def _passes(self, done: set[str]) -> list[str]:
        """Returns one pass per depth, and one that writes.

        Args:
            done: Variables that are there before.
        """
        lines = self._row_steps(done)
        depths = {step.depth for step in self.steps if step.kind is not Kind.MAP}
        for depth in sorted(depths):
            found = [s for s in self.steps if s.kind is not Kind.MAP and s.depth == depth]
            lines += [f"{s.name}_total = {_ZEROS}" for s in found]
            inner = []
            for s in found:
                inner += [f"# {s.comment}"] if s.comment else []
                inner.append(f"{s.name}_total += tl.where(mask, {s.text}, 0.0)")
            lines += self._nest({name for s in found for name in s.reads}, done, inner)
            lines += [f"{s.name} = tl.sum({s.name}_total)" for s in found]
            done |= {s.name for s in found}
            lines += self._row_steps(done)
        for stored in self.stores:
            if stored.way is Way.ROW_PARTS:
                lines += _guarded(stored, [_store(stored, "")])
        rest = [stored for stored in self.stores if stored.way is not Way.ROW_PARTS]
        if rest:
            lines += self._writing(rest, done)
        return lines

    def _writing(self, stores: Sequence[Stored], done: set[str]) -> list[str]:
        begun, inner, ended = [], [], []
        for stored in stores:
            total = f"{stored.out}_sum"
            if stored.way is Way.WHOLE:
                inner += _guarded(stored, [_store(stored, "")])
                continue
            begun += _guarded(stored, [f"{total} = {_ZEROS}"])
            inner += _guarded(stored, [f"{total} += tl.where(mask, {stored.variable}, 0.0)"])
            ended += _guarded(stored, [_store(stored, f"tl.sum({total}, axis=1)")])
        return self._nest({stored.variable for stored in stores}, done, inner, begun, ended)

    def _row_steps(self, done: set[str]) -> list[str]:
        """Returns statements about whole groups whose operands are there, adding their names."""
        lines: list[str] = []
        for step in self.steps:
            is_new = step.kind is Kind.MAP and not step.is_tile and step.name not in done
            if is_new and set(step.reads) <= done:
                lines += _statement(step, step.text)
                done.add(step.name)
        return lines

    def _nest(
        self,
        wanted: set[str],
        done: set[str],
        inner: Sequence[str],
        begun: Sequence[str] = (),
        ended: Sequence[str] = (),
    ) -> list[str]:
        """Returns loops over channels and their planes that compute what is wanted of a tile."""
        needed = set(wanted)
        kept: list[Step] = []
        for step in reversed(self.steps):
            if step.name in needed and step.name not in done:
                kept.append(step)
                needed |= set(step.reads)
        read = [op for op in self.operands if op.name in needed and not is_scalar(op)]
        tile = [*_places("start + tl.arange(0, BLOCK)")]
        tile += [_load(op) for op in read if not op.is_per_channel]
        for step in reversed(kept):
            tile += _statement(step, step.text)
        body = [
            "channel = begin + tl.arange(0, CHANNELS)",
            *(_load(op) for op in read if op.is_per_channel),
            *begun,
            "for start in range(0, plane, BLOCK):",
            *_indented([*tile, *inner]),
            *ended,
        ]
        return ["for begin in range(0, channels, CHANNELS):", *_indented(body)]


_ZEROS = "tl.zeros([CHANNELS, BLOCK], tl.float32)"


def _places(place: str) -> list[str]:
    return [
        f"place = ({place})[None, :]",
        "column = channel[:, None] * plane + place",
        "mask = (channel < channels)[:, None] & (place < plane)",
    ]


def _load(operand: Operand) -> str:
    """Returns the line that loads an operand."""
    name, is_float = operand.name, operand.value.dtype in FLOATS
    wide = ".to(tl.float32)" if is_float else ""
    other = "0.0" if is_float else "0"
    if is_scalar(operand):
        return f"{name} = tl.load({name}_ptr){wide}"
    if not operand.is_per_channel:
        place = f"{name}_ptr + first * plane + column"
        return f"{name} = tl.load({place}, mask=mask, other={other}){wide}"
    begin = "first" if operand.is_every_row else "row % groups * channels"
    place = f"{name}_ptr + {begin} + channel"
    return f"{name} = tl.load({place}, mask=channel < channels, other={other})[:, None]{wide}"


def _statement(step: Step, reduced: str) -> list[str]:
    """Returns the lines of a step; `reduced` is what it is where it is a reduction."""
    lines = [f"# {step.comment}"] if step.comment else []
    return [*lines, f"{step.name} = {step.text if step.kind is Kind.MAP else reduced}"]


def _store(stored: Stored, sums: str) -> str:
    """Returns the line that stores a tensor; `sums` are those of the channels."""
    out = f"{stored.out}_ptr"
    match stored.way:
        case Way.CHANNEL_PARTS:
            return f"tl.store({out} + first + channel, {sums}, mask=channel < channels)"
        case Way.ROW_PARTS:
            return f"tl.store({out} + row, {stored.variable})"
        case _:
            cast = "" if stored.is_bool else f".to({out}.dtype.element_ty)"
            value = f"tl.broadcast_to({stored.variable}, [CHANNELS, BLOCK]){cast}"
            return f"tl.store({out} + first * plane + column, {value}, mask=mask)"


def forward_kernel(
    operands: Sequence[Operand], steps: Sequence[Step], results: dict[str, DType | None]
) -> list[str]:
    """Returns the lines of the kernel of a region.

    Args:
        operands: What it reads.
        steps: Its steps.
        results: Element types of the variables that it stores.
    """
    stores = tuple(
        Stored(f"{name}_out", name, Way.WHOLE, is_bool=dtype is DType.BOOL)
        for name, dtype in results.items()
    )
    kernel = GroupKernel(tuple(operands), tuple(steps), stores)
    return kernel.lines(f"{PLACE}_kernel", f"Writes what `reference_{PLACE}` returns")


def launch_lines(
    operands: Sequence[Operand], x: str, typed: str, rank: int, groups: int, entry: str
) -> list[str]:
    """Returns the lines of a launch before the call: operands in one piece, sizes of a tile.

    Args:
        operands: What the kernel reads.
        x: An operand that has every element.
        typed: A tensor of floats.
        rank: How many axes that has.
        groups: Into how many groups its channels are split.
        entry: Of the table of configurations.
    """
    size = "triton.next_power_of_2(channels) * block_of(plane)"
    return [
        *(f"{op.name} = {op.name}.contiguous()" for op in operands if not is_scalar(op)),
        f"channels, plane = {x}.shape[1] // {groups}, size_between({x}.shape, 2, {rank})",
        f'config = config_for("{entry}", {typed}, {size})',
        'block = min(block_of(plane), config["max_block"])',
        'height = min(triton.next_power_of_2(channels), config["max_block"] // block)',
    ]


def call_lines(kernel: str, tensors: Sequence[str], x: str, groups: int,
               constants: Sequence[str] = ()) -> list[str]:  # fmt: skip
    """Returns the lines that call a kernel of groups.

    Args:
        kernel: Its name.
        tensors: What it reads and writes.
        x: An operand that has every element.
        groups: Into how many groups its channels are split.
        constants: Further compile-time constants, with their values.
    """
    return [
        f"wrap_triton({kernel})[({x}.shape[0] * {groups},)](",
        *(f"    {each}," for each in (*tensors, groups, "channels", "plane")),
        "    CHANNELS=height,",
        "    BLOCK=block,",
        "    SINGLE=height >= channels and block >= plane,",
        *(f"    {each}," for each in constants),
        '    num_warps=config["warps"],',
        ")",
    ]
