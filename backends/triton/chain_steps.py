"""A region as steps of a kernel of rows: expressions and reductions, each with its depth.

Depth counts the reductions that stand before a step: a row too long for registers is read once
more per depth.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from regraft.backends.torch.naming import variable_hint
from regraft.backends.triton.chain_forms import (
    FLOATS,
    TORCH_FLOATS,
    form_of,
    is_rounded_first,
    number_text,
    operands_of,
)
from regraft.backends.triton.chain_names import RESERVED, roles_of, variable_of
from regraft.backends.triton.channel_groups import affine_shape
from regraft.backends.triton.node_places import comment_of
from regraft.backends.triton.region_nodes import REDUCTIONS, is_dropped, reduced_of
from regraft.backends.triton.regions import Region
from regraft.ir.graph import Node, Value
from regraft.ir.ops import norm, response_norm, softmax
from regraft.ir.ops.logical import where
from regraft.ir.ops.repeating import expand
from regraft.ir.types import DType


class Kind(enum.Enum):
    """What a step does."""

    MAP = "map"
    SUM = "sum"
    MAX = "max"
    MIN = "min"
    SOFTMAX = "softmax"
    """The largest element, and the sum of e^(x - largest) under the name `{name}_total`."""


@dataclass(frozen=True, slots=True)
class Step:
    """One statement of a kernel.

    Args:
        name: The variable.
        kind: What it does.
        text: The expression; of a reduction, what is reduced.
        reads: Variables that the expression names.
        is_tile: Whether there is an element per column.
        depth: Reductions before it.
        comment: What it is in the IR, on the first step of a node.
    """

    name: str
    kind: Kind
    text: str
    reads: tuple[str, ...]
    is_tile: bool
    depth: int
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor that a kernel reads.

    Args:
        name: Its variable.
        value: The value.
        is_wide: Whether it has an element per column.
        runs: The leading axes of the space that it has, as ranges; the others are 1 there.
        is_every_row: Whether it has every row of the space.
        is_per_channel: Whether, of columns that are several channels, it has one for each.
    """

    name: str
    value: Value
    is_wide: bool
    runs: tuple[tuple[int, int], ...]
    is_every_row: bool
    is_per_channel: bool = False


@dataclass(frozen=True, slots=True)
class Lowered:
    """A region as steps.

    Args:
        operands: What is read.
        steps: In order.
        reference: Lines of PyTorch.
        results: Names of the outputs, in their order.
        names: Words for a name of the kernel.
        needs: Functions of the kernels that expressions call.
    """

    operands: tuple[Operand, ...]
    steps: tuple[Step, ...]
    reference: tuple[str, ...]
    results: tuple[str, ...]
    names: tuple[str, ...]
    needs: tuple[str, ...]

    @property
    def variables(self) -> tuple[str, ...]:
        """The names of operands and steps."""
        return (*(op.name for op in self.operands), *(step.name for step in self.steps))


@dataclass(frozen=True, slots=True)
class Taped:
    """A node and what it became, for its gradient.

    Args:
        node: The node.
        result: The variable of its result.
        operands: Variables of what it reads, and numbers.
        steps: Its steps.
    """

    node: Node
    result: str
    operands: tuple[str, ...]
    steps: tuple[Step, ...]


def operand_of(value: Value, name: str, region: Region) -> Operand:
    """Returns how the kernel of a region reads a value: its last axes are columns of rows."""
    space, columns = region.space, region.columns
    shape = affine_shape(value) or value.shape or ()
    padded = (1,) * (len(space) - len(shape)) + tuple(shape)
    lead, full = padded[:-columns], space[:-columns]
    none = (1,) * columns
    runs: list[tuple[int, int]] = []
    for axis, (size, whole) in enumerate(zip(lead, full, strict=True)):
        if size == 1 and whole != 1:
            continue
        if runs and runs[-1][1] == axis:
            runs[-1] = (runs[-1][0], axis + 1)
        elif size != 1:
            runs.append((axis, axis + 1))
    is_every = all(size == whole for size, whole in zip(lead, full, strict=True))
    is_wide = padded[-columns:] != none or space[-columns:] == none
    is_per_channel = region.groups > 0 and is_wide and padded != space
    return Operand(name, value, is_wide, tuple(runs), is_every, is_per_channel)


class Lowering:
    """Writes the steps of one region.

    Args:
        region: The region.
        given: Values that are variables already, such as the product of a template.
        taken: Further names that are none of variables.
        width: What holds the number of columns.
        called: Names of operands that are not those of the model.

    Attributes:
        operands: What is read.
        tiles: Whether a variable has an element per column.
        tape: Nodes that were lowered, in order.
    """

    def __init__(
        self,
        region: Region,
        given: Mapping[Value, str] | None = None,
        taken: Iterable[str] = (),
        width: str = "N",
        called: Mapping[Value, str] | None = None,
    ) -> None:
        self._region = region
        self._space = region.space
        self._taken = {*RESERVED, *taken}
        self.width = width
        self._names: dict[Value, str] = {}
        self.tiles: dict[str, bool] = {}
        self.tape: list[Taped] = []
        self._depths: dict[str, int] = {}
        self._steps: list[Step] = []
        self._lines: list[str] = []
        self._needs: dict[str, None] = {}
        self.operands: list[Operand] = []
        for value, name in (given or {}).items():
            self._names[value] = self._take(name)
            self.tiles[name], self._depths[name] = True, 0
        roles = roles_of(region.nodes)
        for value in region.inputs:
            if value in self._names:
                continue
            hint = (called or {}).get(value) or roles.get(value) or variable_hint(value)
            operand = operand_of(value, self._take(hint), region)
            self.operands.append(operand)
            self._names[value] = operand.name
            self.tiles[operand.name], self._depths[operand.name] = operand.is_wide, 0

    def lowered(self) -> Lowered:
        """Returns the steps of all nodes."""
        for node in self._region.nodes:
            self._add(node)
        return Lowered(
            tuple(self.operands),
            tuple(self._steps),
            tuple(self._lines),
            tuple(self._names[value] for value in self._region.outputs),
            tuple(node.op.name for node in self._region.nodes),
            tuple(self._needs),
        )

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps so far."""
        return tuple(self._steps)

    def add_operand(self, hint: str, value: Value, *, is_wide: bool) -> Operand:
        """Adds a tensor with every row, such as the gradient of a result, that is read as well."""
        operand = Operand(self._take(hint), value, is_wide, (), is_every_row=True)
        self.operands.append(operand)
        self.tiles[operand.name], self._depths[operand.name] = is_wide, 0
        return operand

    def _take(self, hint: str) -> str:
        hint = variable_of(hint)
        name, number = hint, 1
        while name in self._taken:
            number += 1
            name = f"{hint}_{number}"
        self._taken.update({name, *(f"{name}_{end}" for end in ("total", "out", "ptr", "stride"))})
        return name

    def _step(self, hint: str, kind: Kind, text: str, reads: tuple[str, ...], comment: str) -> str:
        name = self._take(hint)
        depth = max((self._depths[each] for each in reads), default=0)
        is_tile = kind is Kind.MAP and any(self.tiles[each] for each in reads)
        self._steps.append(Step(name, kind, text, reads, is_tile, depth, comment))
        is_reduced = kind is not Kind.MAP
        for each in (name, f"{name}_total"):
            self.tiles[each], self._depths[each] = is_tile, depth + is_reduced
        return name

    def _map(self, hint: str, text: str, *reads: str, comment: str = "") -> str:
        return self._step(hint, Kind.MAP, text, reads, comment)

    def _text(self, value: Value) -> str:
        number = number_text(value)
        return self._names[value] if number is None else number

    def _add(self, node: Node) -> None:
        first = len(self._steps)
        lower = _ROWS.get(node.op) or (_reduction if node.op in REDUCTIONS else None)
        if node.op is expand:
            x = self.operand(node, 0)
            full = next(op.name for op in self.operands if op.value.shape == self._space)
            # an element per column, as a result of this shape has
            name = self._map("wide", f"tl.where(mask, {x}, 0.0)", x, full)
            reference = f"{x}.expand({full}.shape)"
        elif lower is not None:
            name, reference = lower(self, node)
        else:
            name, reference = self._element(node)
        self._names[node.outputs[0]] = name
        self._lines.append(f"{name} = {reference}")
        is_single = node.op is expand or node.op in REDUCTIONS
        used = node.inputs if node.op in _ROWS else operands_of(node)
        used = node.inputs[:1] if is_single else used
        texts = tuple(self._text(value) for value in used if value is not None)
        self.tape.append(Taped(node, name, texts, tuple(self._steps[first:])))

    def _element(self, node: Node) -> tuple[str, str]:
        form = form_of(node)
        if form is None:
            raise AssertionError(f"`{node.op.name}` has no expression")
        texts, kernel_texts, reads = [], [], []
        for value in operands_of(node):
            text = self._text(value)
            texts.append(text)
            if number_text(value) is None:
                reads.append(text)
                if is_rounded_first(node) and value.dtype in (DType.F16, DType.BF16):
                    text = f"{text}.to({FLOATS[value.dtype]}).to(tl.float32)"
            kernel_texts.append(text)
        self._needs.update(dict.fromkeys(form.needs))
        hint = variable_hint(node.output)
        name = self._map(hint, form.kernel.format(*kernel_texts), *reads, comment=comment_of(node))
        reference = form.torch.format(*texts)
        if node.op is where and node.output.dtype in TORCH_FLOATS and len(reads) == 1:
            reference += f".to({TORCH_FLOATS[node.output.dtype]})"  # PyTorch's own would be f32
        return name, reference

    def operand(self, node: Node, idx: int) -> str:
        """Returns the variable of an operand."""
        value = node.inputs[idx]
        if value is None:
            raise AssertionError("a missing operand")
        return self._names[value]

    def reduced(self, hint: str, kind: Kind, text: str, *reads: str, comment: str = "") -> str:
        """Adds a reduction of an expression."""
        return self._step(hint, kind, text, reads, comment)

    def mapped(self, hint: str, text: str, *reads: str, comment: str = "") -> str:
        """Adds an expression."""
        return self._map(hint, text, *reads, comment=comment)


def _reduction(s: Lowering, node: Node) -> tuple[str, str]:
    x, note = s.operand(node, 0), comment_of(node)
    hint = variable_hint(node.output)
    axes = tuple(range(-reduced_of(node), 0))
    how = f"{axes[0] if len(axes) == 1 else axes}"
    how += "" if is_dropped(node) else ", keepdim=True"
    match node.op.name:
        case "reduce_sum":
            return s.reduced(hint, Kind.SUM, x, x, comment=note), f"{x}.sum({how})"
        case "reduce_mean":
            total = s.reduced("row_sum", Kind.SUM, x, x, comment=note)
            return s.mapped(hint, f"{total} / {s.width}", total), f"{x}.mean({how})"
        case "reduce_max":
            return s.reduced(hint, Kind.MAX, x, x, comment=note), f"{x}.amax({how})"
        case "reduce_min":
            return s.reduced(hint, Kind.MIN, x, x, comment=note), f"{x}.amin({how})"
        case "reduce_sum_square":
            name = s.reduced(hint, Kind.SUM, f"{x} * {x}", x, comment=note)
            return name, f"{x}.square().sum({how})"
        case "reduce_l1":
            name = s.reduced(hint, Kind.SUM, f"tl.abs({x})", x, comment=note)
            return name, f"{x}.abs().sum({how})"
        case _:
            total = s.reduced("square_sum", Kind.SUM, f"{x} * {x}", x, comment=note)
            name = s.mapped(hint, f"tl.sqrt({total})", total)
            return name, f"torch.linalg.vector_norm({x}, 2, {how})"


def _soft(s: Lowering, node: Node) -> tuple[str, str]:
    x = s.operand(node, 0)
    largest = s.reduced("largest", Kind.SOFTMAX, x, x, comment=comment_of(node))
    total = f"{largest}_total"
    reads = (x, largest, total)
    if node.op is softmax.softmax:
        text = f"tl.exp({x} - {largest}) / {total}"
        return s.mapped(variable_hint(node.output), text, *reads), f"torch.softmax({x}, -1)"
    text = f"{x} - {largest} - tl.log({total})"
    return s.mapped(variable_hint(node.output), text, *reads), f"torch.log_softmax({x}, -1)"


def _normal(s: Lowering, node: Node) -> tuple[str, str]:
    x, note, eps = s.operand(node, 0), comment_of(node), float(node.attrs["epsilon"])
    gains = [s.operand(node, idx) for idx in range(1, len(node.inputs)) if node.inputs[idx]]
    if node.op is not norm.rms_norm:
        name = "row_sum" if node.op is norm.layer_norm else "group_sum"
        total = s.reduced(name, Kind.SUM, x, x, comment=note)
        centered = s.mapped("centered", f"{x} - {total} / {s.width}", x, total)
    else:
        centered, total = x, note
    squares = s.reduced(
        "square_sum", Kind.SUM, f"{centered} * {centered}", centered,
        comment=note if node.op is norm.rms_norm else "",
    )  # fmt: skip
    text = f"{centered} / tl.sqrt({squares} / {s.width} + {eps!r})"
    text += "".join(f" {sign} {gain}" for sign, gain in zip("*+", gains, strict=False))
    name = s.mapped(variable_hint(node.outputs[0]), text, centered, squares, *gains)
    if node.op is norm.group_norm:
        groups = node.attrs["groups"]
        return name, f"torch.group_norm({x}, {groups}, {', '.join(gains)}, {eps!r})"
    call = f"torch.nn.functional.{node.op.name}"
    return name, f"{call}({x}, {x}.shape[-1:], {', '.join(gains)}, eps={eps!r})"


def _unit(s: Lowering, node: Node) -> tuple[str, str]:
    x = s.operand(node, 0)
    squares = s.reduced("square_sum", Kind.SUM, f"{x} * {x}", x, comment=comment_of(node))
    text = f"tl.where({squares} > 0.0, {x} / tl.sqrt({squares}), 0.0)"
    name = s.mapped(variable_hint(node.output), text, x, squares)
    least = 1e-7 if node.output.dtype is DType.F16 else 1e-37
    return name, f"torch.nn.functional.normalize({x}, dim=-1, eps={least!r})"


_ROWS: Mapping[object, Callable[[Lowering, Node], tuple[str, str]]] = {
    softmax.softmax: _soft,
    softmax.log_softmax: _soft,
    norm.layer_norm: _normal,
    norm.rms_norm: _normal,
    norm.group_norm: _normal,
    response_norm.lp_norm: _unit,
}
