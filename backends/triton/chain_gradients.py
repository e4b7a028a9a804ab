"""The gradient of a region as further steps of its kernel: reverse mode over the steps.

What the forward kernel computed is computed again from the operands, so nothing is kept between
the two but those. All gradients are linear in what is handed in: that of an operand which many
elements read is written per element or per row, and summed over the axes that it lacks at last.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from regraft.backends.triton.chain_forms import FLOATS, operands_of
from regraft.backends.triton.chain_slopes import slopes_of
from regraft.backends.triton.chain_steps import (
    Kind,
    Lowered,
    Lowering,
    Operand,
    Step,
    Taped,
)
from regraft.backends.triton.node_places import comment_of
from regraft.backends.triton.region_nodes import REDUCTIONS
from regraft.backends.triton.regions import Region
from regraft.ir.graph import Node, Value
from regraft.ir.ops import norm, response_norm, softmax
from regraft.ir.ops.repeating import expand
from regraft.ir.types import DType

_NAME = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class Gradient:
    """The gradient of one operand.

    Args:
        operand: The operand, in f32, f16 or bf16.
        name: The variable that holds it; None where it is zero everywhere.
    """

    operand: Operand
    name: str | None


@dataclass(frozen=True, slots=True)
class Gradients:
    """The gradients of a region.

    Args:
        given: Gradients of its float results, as further operands.
        found: Those of its float operands.
        steps: What computes them, of the forward kernel's steps those that they need.
        tiles: Whether a variable has an element per column.
    """

    given: tuple[Operand, ...]
    found: tuple[Gradient, ...]
    steps: tuple[Step, ...]
    tiles: Mapping[str, bool]


def gradients_of(region: Region, lowering: Lowering, lowered: Lowered) -> Gradients | str:
    """Returns the gradients of a region whose steps were lowered, or why there are none.

    Args:
        region: The region.
        lowering: What lowered it; gets further steps.
        lowered: Its steps.
    """
    floats = [operand for operand in lowered.operands if operand.value.dtype in FLOATS]
    results = [
        (value, name)
        for value, name in zip(region.outputs, lowered.results, strict=True)
        if value.dtype in FLOATS
    ]
    if not floats or not results:
        return "no operand or no result is of floats"
    unknown = [
        taped.node.op.name
        for taped in lowering.tape
        if taped.node.outputs[0].dtype in FLOATS and _rule_of(taped.node) is None
    ]
    if unknown:
        return f"`{unknown[0]}` has no rule"
    reverse = _Reverse(lowering)
    given = tuple(reverse.hand_in(value, name) for value, name in results)
    for taped in reversed(lowering.tape):
        reverse.visit(taped)
    found = tuple(Gradient(operand, reverse.total(operand.name)) for operand in floats)
    if all(gradient.name is None for gradient in found):
        return "no gradient reaches an operand"
    steps = _needed(lowering.steps, {each.name for each in found if each.name is not None})
    return Gradients(given, found, steps, lowering.tiles)


def _needed(steps: tuple[Step, ...], wanted: set[str]) -> tuple[Step, ...]:
    kept: list[Step] = []
    for step in reversed(steps):
        if step.name in wanted or f"{step.name}_total" in wanted:
            kept.append(step)
            wanted |= set(step.reads)
    return tuple(reversed(kept))


class _Reverse:
    """Walks over nodes in reverse; sums up what each variable's gradient consists of."""

    def __init__(self, lowering: Lowering) -> None:
        self.s = lowering
        self._parts: dict[str, list[tuple[str, str]]] = {}
        self._totals: dict[str, str] = {}
        self._comment = ""

    def hand_in(self, value: Value, name: str) -> Operand:
        """Returns the gradient of a result as an operand."""
        operand = self.s.add_operand(f"d_{name}", value, is_wide=self.s.tiles[name])
        self._parts.setdefault(name, []).append((operand.name, ""))
        return operand

    def visit(self, taped: Taped) -> None:
        """Adds what the gradient of a node's result gives to those of its operands."""
        g = self.total(taped.result)
        rule = _rule_of(taped.node)
        if g is not None and rule is not None:
            self._comment = f"gradient of {comment_of(taped.node)}"
            rule(self, taped, g)

    def total(self, name: str) -> str | None:
        """Returns the variable that holds the gradient of a variable, None where it is zero."""
        parts = self._parts.get(name)
        if not parts:
            return None
        if name not in self._totals:
            text = " + ".join(part for part, _ in parts)
            if len(parts) > 1 or _NAME.fullmatch(text) is None:
                comment = next((comment for _, comment in parts if comment), "")
                reads = self._reads(text)
                text = self.s.mapped(f"d_{name}", text, *reads, comment=comment)
            self._totals[name] = text
        return self._totals[name]

    def add(self, to: str, text: str, at: str) -> None:
        """Adds to the gradient of a variable.

        Args:
            to: The variable.
            text: What is added.
            at: The result that it was used for, which may have columns where it has none.
        """
        if self.s.tiles[at] and not self.s.tiles[to]:
            text = self.summed(f"d_{to}", text)
        self._parts.setdefault(to, []).append((text, self._comment))

    def mapped(self, hint: str, text: str) -> str:
        """Adds an expression; returns its variable."""
        comment, self._comment = self._comment, ""
        return self.s.mapped(hint, text, *self._reads(text), comment=comment)

    def summed(self, hint: str, text: str) -> str:
        """Adds the sum of an expression over columns; returns its variable."""
        comment, self._comment = self._comment, ""
        return self.s.reduced(hint, Kind.SUM, text, *self._reads(text), comment=comment)

    def _reads(self, text: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(n for n in _NAME.findall(text) if n in self.s.tiles))


_Rule = Callable[[_Reverse, Taped, str], None]


def _rule_of(node: Node) -> _Rule | None:
    if node.op in REDUCTIONS:
        return _of_reduction
    if node.op is expand:
        return lambda r, taped, g: r.add(taped.operands[0], g, taped.result)
    rule = _ROWS.get(node.op)
    if rule is None and slopes_of(node) is not None:
        return _of_element
    return rule


def _of_element(r: _Reverse, taped: Taped, g: str) -> None:
    values = operands_of(taped.node)
    slopes = slopes_of(taped.node) or ()
    for value, name, slope in zip(values, taped.operands, slopes, strict=True):
        if slope is not None and value.dtype in FLOATS and name in r.s.tiles:
            r.add(name, slope.format(*taped.operands, y=taped.result, g=g), taped.result)


def _of_reduction(r: _Reverse, taped: Taped, g: str) -> None:
    x, y, width = taped.operands[0], taped.result, r.s.width
    match taped.node.op.name:
        case "reduce_sum":
            text = g
        case "reduce_mean":
            text = f"{g} / {width}"
        case "reduce_max" | "reduce_min":  # equal elements share it; a tile's spare rows have none
            ties = r.summed("ties", f"tl.where({x} == {y}, 1.0, 0.0)")
            text = f"tl.where({x} == {y}, {g} / tl.maximum({ties}, 1.0), 0.0)"
        case "reduce_sum_square":
            text = f"{g} * 2.0 * {x}"
        case "reduce_l1":
            text = f"tl.where({x} > 0.0, {g}, tl.where({x} < 0.0, -{g}, 0.0))"
        case _:
            text = f"tl.where({y} == 0.0, 0.0, {g} * {x} / {y})"
    r.add(x, text, x)


def _of_softmax(r: _Reverse, taped: Taped, g: str) -> None:
    x, y = taped.operands[0], taped.result
    if taped.node.op is softmax.softmax:
        # y * (g - sum of g * y)
        product = r.summed("product", f"{g} * {y}")
        r.add(x, f"{y} * ({g} - {product})", x)
        return
    row_sum = r.summed("row_sum", g)
    r.add(x, f"{g} - tl.exp({y}) * {row_sum}", x)


def _of_norm(r: _Reverse, taped: Taped, g: str) -> None:
    # n = (x - mean) / deviation; dx = (h - mean(h) - n * mean(h * n)) / deviation, h = g * gain
    x, gain, *bias = taped.operands
    width, eps = r.s.width, float(taped.node.attrs["epsilon"])
    *_, squares, _ = taped.steps
    is_centered = taped.node.op is not norm.rms_norm
    centered = taped.steps[1].name if is_centered else x
    rstd = r.mapped("rstd", f"1.0 / tl.sqrt({squares.name} / {width} + {eps!r})")
    n = r.mapped("normal", f"{centered} * {rstd}")
    h = r.mapped("d_normal", f"{g} * {gain}")
    slope = r.summed("slope", f"{h} * {n}")
    text = f"{h} - {n} * ({slope} / {width})"
    if is_centered:
        text += f" - {r.summed('level', h)} / {width}"
    r.add(x, f"{rstd} * ({text})", x)
    r.add(gain, f"{g} * {n}", x)
    for each in bias:
        r.add(each, g, x)


def _of_unit(r: _Reverse, taped: Taped, g: str) -> None:
    # y = x / |x|; dx = (g - y * sum of g * y) / |x|
    x, y, squares = taped.operands[0], taped.result, taped.steps[0].name
    least = 1e-7 if taped.node.output.dtype is DType.F16 else 1e-37
    product = r.summed("product", f"{g} * {y}")
    text = f"({g} - {y} * {product}) / tl.sqrt({squares})"
    r.add(x, f"tl.where({squares} > 0.0, {text}, {g} / {least!r})", x)


_ROWS: Mapping[object, _Rule] = {
    softmax.softmax: _of_softmax,
    softmax.log_softmax: _of_softmax,
    norm.layer_norm: _of_norm,
    norm.rms_norm: _of_norm,
    norm.group_norm: _of_norm,
    response_norm.lp_norm: _of_unit,
}
