"""Writes the kernel of a region: rows in registers where they fit, else passes over blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from regraft.backends.triton.chain_forms import FLOATS
from regraft.backends.triton.chain_steps import Kind, Lowered, Operand, Step
from regraft.backends.triton.regions import Region
from regraft.ir.types import DType

PLACE = "§"
"""Stands for the kernel's name, which is given when all are known."""

_ACCUMULATE = {
    Kind.SUM: ("tl.zeros([{0}, 1], tl.float32)", "{0} += {1}"),
    Kind.MAX: ('tl.full([{0}, 1], float("-inf"), tl.float32)', "{0} = tl.maximum({0}, {1})"),
    Kind.MIN: ('tl.full([{0}, 1], float("inf"), tl.float32)', "{0} = tl.minimum({0}, {1})"),
}
_REDUCE = {
    Kind.SUM: "tl.sum(tl.where(mask, {0}, 0.0), axis=1, keep_dims=True)",
    Kind.MAX: 'tl.max(tl.where(mask, {0}, float("-inf")), axis=1, keep_dims=True)',
    Kind.MIN: 'tl.min(tl.where(mask, {0}, float("inf")), axis=1, keep_dims=True)',
}


def is_scalar(operand: Operand) -> bool:
    """Whether an operand has one element."""
    return all(size == 1 for size in operand.value.shape or ())


def places_of(operand: Operand) -> list[str]:
    """Returns the arguments that place the rows of an operand."""
    name = operand.name
    if is_scalar(operand):
        return []
    if operand.is_every_row:
        return [f"{name}_stride"] if operand.is_wide else []
    return [f"{name}_{what}{i or ''}" for i, _ in enumerate(operand.runs)
            for what in ("inner", "size")]  # fmt: skip


def _row_of(operand: Operand, base: str = "row") -> str:
    """Returns the row of an operand that belongs to a row, or an element, of the space."""
    if operand.is_every_row:
        return "row"
    parts = []
    for i, _ in enumerate(operand.runs):
        part = f"{base} // {operand.name}_inner{i or ''} % {operand.name}_size{i or ''}"
        later = [f"{operand.name}_size{j}" for j in range(i + 1, len(operand.runs))]
        parts.append(" * ".join([f"({part})" if later else part, *later]))
    return " + ".join(parts)


def load_line(operand: Operand, column: str, width: str = "N") -> str:
    """Returns the line that loads an operand.

    Args:
        operand: The operand.
        column: The variable of the columns.
        width: How many columns there are.
    """
    name, pointer = operand.name, f"{operand.name}_ptr"
    wide = ".to(tl.float32)" if operand.value.dtype in FLOATS else ""
    if is_scalar(operand):
        return f"{name} = tl.load({pointer}){wide}"
    other = ", other=0.0" if operand.value.dtype in FLOATS else ", other=0"
    row = _row_of(operand)
    if not operand.is_wide:
        load = f"tl.load({pointer} + {row}, mask=row < num_rows{other})"
        return f"{name} = {load}[:, None]{wide}"
    if not operand.is_every_row and not operand.runs:
        load = f"tl.load({pointer} + {column}, mask={column} < {width}{other})"
        return f"{name} = {load}{wide}"
    stride = f"{name}_stride" if operand.is_every_row else width
    place = f"rows * {stride}" if row == "row" else f"({row})[:, None] * {stride}"
    return f"{name} = tl.load({pointer} + {place} + {column}, mask=mask{other}){wide}"


def load_of_element(operand: Operand) -> str:
    """Returns the line that loads what an operand has for each of the elements in one long row."""
    name = operand.name
    wide = ".to(tl.float32)" if operand.value.dtype in FLOATS else ""
    other = "0.0" if operand.value.dtype in FLOATS else "0"
    place = _row_of(operand, "column")
    return f"{name} = tl.load({name}_ptr + {place}, mask=mask, other={other}){wide}"


def is_per_column(operand: Operand) -> bool:
    """Whether an operand has an element per column, so that a loop over columns loads it."""
    return operand.is_wide and not is_scalar(operand)


class KernelWriter:
    """Writes one kernel.

    Attributes:
        has_rows: Whether rows are reduced, so that a program has all columns of its rows.
        results: Values by their variables.
        tiles: Whether a step has an element per column, by its variable.
        is_flat: Whether all tensors have one shape, and rows mean nothing.
        is_of_planes: Whether others have channels alone, which each element finds for itself: so
            planes may be of any size, and channels the last in memory.
        outs: Variables of the tensors that results are stored in.
        tile: What holds the number of columns, the rows of a tile and its columns.
    """

    def __init__(
        self,
        region: Region,
        lowered: Lowered,
        tile: tuple[str, str, str] = ("N", "ROWS", "BLOCK"),
    ) -> None:
        self.tile = tile
        self.region = region
        self.lowered = lowered
        self.has_rows = any(step.kind is not Kind.MAP for step in lowered.steps)
        self.results = dict(zip(lowered.results, region.outputs, strict=True))
        self.tiles = {step.name: step.is_tile for step in lowered.steps}
        self.is_of_planes = self._is_of_planes()
        if self.is_of_planes:
            split = tuple(_by_axis(op) for op in lowered.operands)
            self.lowered = replace(lowered, operands=split)
        self.is_flat = all(
            (op.is_every_row and op.is_wide) or is_scalar(op) for op in lowered.operands
        ) and all(self.tiles[name] for name in self.results)
        self.outs = {name: f"{name}_out" for name in self.results}

    def _is_of_planes(self) -> bool:
        whole = [op for op in self.lowered.operands if op.value.shape == self.region.space]
        return (
            self.region.columns > 1
            and not self.has_rows
            and bool(whole)
            and all(
                op in whole or is_scalar(op) or (not op.is_wide and op.runs)
                for op in self.lowered.operands
            )
            and all(value.shape == self.region.space for value in self.results.values())
            and bool(self.results)
        )

    def _store(self, name: str, column: str) -> str:
        """Returns the line that stores a result."""
        out, value = f"{self.outs[name]}_ptr", self.results[name]
        text = name if value.dtype is DType.BOOL else f"{name}.to({out}.dtype.element_ty)"
        if self.tiles[name]:
            return f"tl.store({out} + rows * N + {column}, {text}, mask=mask)"
        flat = f"tl.reshape(tl.broadcast_to({text}, [ROWS, 1]), [ROWS])"
        return f"tl.store({out} + row, {flat}, mask=row < num_rows)"

    # -- the kernel -------------------------------------------------------------------------

    def kernel(self) -> list[str]:
        """Returns the lines of the kernel."""
        pointers = [f"{op.name}_ptr" for op in self.lowered.operands]
        pointers += [f"{out}_ptr" for out in self.outs.values()]
        places = [place for op in self.lowered.operands for place in places_of(op)]
        constants = ["ROWS", "BLOCK", *(["SINGLE"] if self.has_rows else [])]
        lines = ["@triton.jit", f"def {PLACE}_kernel("]
        lines += [f"    {name}," for name in (*pointers, "num_rows", "N", *places)]
        lines += [f"    {name}: tl.constexpr," for name in constants]
        lines.append("):")
        lines.append(f'    """Writes what `reference_{PLACE}` returns, ROWS rows at a time."""')
        if self.has_rows:
            lines.append("    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)")
        else:
            lines.append("    tiles = tl.cdiv(N, BLOCK)")
            lines.append(
                "    row = (tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)"
            )
        lines.append("    rows = row[:, None]")
        placed = [op for op in self.lowered.operands if self.is_of_planes and op.runs
                  and not op.is_wide]  # fmt: skip
        once = [op for op in self.lowered.operands if not is_per_column(op) and op not in placed]
        columns = "columns" if self.has_rows else "column"
        start = "" if self.has_rows else "(tl.program_id(0) % tiles) * BLOCK + "
        lines.append(f"    {columns} = {start}tl.arange(0, BLOCK)[None, :]")
        lines += [f"    {load_line(op, columns)}" for op in once]
        lines += self._rows() if self.has_rows else self._elements(placed)
        return lines

    def _elements(self, placed: Sequence[Operand]) -> list[str]:
        lines = ["mask = (rows < num_rows) & (column < N)"]
        lines += [load_of_element(op) for op in placed]
        lines += [load_line(op, "column") for op in self.lowered.operands
                  if is_per_column(op)]  # fmt: skip
        for step in self.lowered.steps:
            lines += statement(step)
        lines += [self._store(name, "column") for name in self.results]
        return [f"    {line}" for line in lines]

    def _rows(self) -> list[str]:
        lines = ["    if SINGLE:"]
        body = ["mask = (rows < num_rows) & (columns < N)"]
        body += [load_line(op, "columns") for op in self.lowered.operands
                 if is_per_column(op)]  # fmt: skip
        for step in self.lowered.steps:
            body += statement(step)
        body += [self._store(name, "columns") for name in self.results]
        lines += [f"        {line}" for line in body]
        lines.append("    else:")
        lines += [f"        {line}" for line in self._passes()]
        return lines

    def _passes(self) -> list[str]:
        """Returns the passes over a long row: one per depth, and one that writes."""
        lines, done = self.reductions()
        wide = [name for name in self.results if self.tiles[name]]
        lines += [self._store(name, "columns") for name in self.results if not self.tiles[name]]
        if wide:
            body = self.block_of(set(wide), done)
            body += [self._store(name, "column") for name in wide]
            lines += self._loop(body)
        return lines

    def _loop(self, body: list[str]) -> list[str]:
        width, _, block = self.tile
        return [f"for start in range(0, {width}, {block}):", *(f"    {line}" for line in body)]

    def reductions(self) -> tuple[list[str], set[str]]:
        """Returns the passes that reduce, one per depth, and the variables that are then there."""
        steps = self.lowered.steps
        last = max((step.depth + (step.kind is not Kind.MAP) for step in steps), default=0)
        lines: list[str] = []
        done: set[str] = {op.name for op in self.lowered.operands if not is_per_column(op)}
        done |= self._row_steps(lines, done)
        for depth in range(last):
            reductions = [s for s in steps if s.kind is not Kind.MAP and s.depth == depth]
            for step in reductions:
                lines += begun(step, self.tile[1])
            body = self.block_of({name for step in reductions for name in step.reads}, done)
            for step in reductions:
                body += accumulated(step)
            lines += self._loop(body)
            for step in reductions:
                done |= {step.name, f"{step.name}_total"}
            done |= self._row_steps(lines, done)
        return lines, done

    def _row_steps(self, lines: list[str], done: set[str]) -> set[str]:
        """Adds the statements about rows whose operands are there; returns their names."""
        added: set[str] = set()
        for step in self.lowered.steps:
            if step.is_tile or step.kind is not Kind.MAP or step.name in done:
                continue
            if set(step.reads) <= done | added:
                lines += statement(step)
                added.add(step.name)
        return added

    def block_of(self, wanted: set[str], done: set[str]) -> list[str]:
        """Returns the lines of a loop that compute what is wanted of a block of columns."""
        width = self.tile[0]
        needed = set(wanted)
        kept: list[Step] = []
        for step in reversed(self.lowered.steps):
            if step.name in needed and step.name not in done:
                kept.append(step)
                needed |= set(step.reads)
        lines = ["column = start + columns", f"mask = (rows < num_rows) & (column < {width})"]
        lines += [
            load_line(op, "column", width)
            for op in self.lowered.operands
            if is_per_column(op) and op.name in needed
        ]
        for step in reversed(kept):
            lines += statement(step)
        return lines


def _by_axis(operand: Operand) -> Operand:
    """Returns an operand each of whose axes has a place of its own, wherever they lie in memory."""
    axes = tuple((axis, axis + 1) for start, stop in operand.runs for axis in range(start, stop))
    return operand if operand.is_wide else replace(operand, runs=axes, is_every_row=False)


def statement(step: Step) -> list[str]:
    """Returns the lines of a step where all columns are there."""
    lines = [f"# {step.comment}"] if step.comment else []
    match step.kind:
        case Kind.MAP:
            lines.append(f"{step.name} = {step.text}")
        case Kind.SOFTMAX:
            lines.append(f"{step.name} = {_REDUCE[Kind.MAX].format(step.text)}")
            exponential = f"tl.exp({step.text} - {step.name})"
            lines.append(f"{step.name}_total = {_REDUCE[Kind.SUM].format(exponential)}")
        case _:
            lines.append(f"{step.name} = {_REDUCE[step.kind].format(step.text)}")
    return lines


def begun(step: Step, height: str) -> list[str]:
    """Returns the lines that begin a reduction over blocks of columns."""
    if step.kind is Kind.SOFTMAX:
        return [
            f"{step.name} = {_ACCUMULATE[Kind.MAX][0].format(height)}",
            f"{step.name}_total = {_ACCUMULATE[Kind.SUM][0].format(height)}",
        ]
    return [f"{step.name} = {_ACCUMULATE[step.kind][0].format(height)}"]


def accumulated(step: Step) -> list[str]:
    """Returns the lines that add a block of columns to a reduction."""
    lines = [f"# {step.comment}"] if step.comment else []
    name = step.name
    if step.kind is not Kind.SOFTMAX:
        part = _REDUCE[step.kind].format(step.text)
        return [*lines, _ACCUMULATE[step.kind][1].format(name, part)]
    # before the first finite element both maxima are -inf, whose difference is NaN
    return [
        *lines,
        f"found = tl.maximum({name}, {_REDUCE[Kind.MAX].format(step.text)})",
        'base = tl.where(found == float("-inf"), 0.0, found)',
        f"{name}_total = {name}_total * tl.exp({name} - base)",
        f"{name}_total += {_REDUCE[Kind.SUM].format(f'tl.exp({step.text} - base)')}",
        f"{name} = found",
    ]
