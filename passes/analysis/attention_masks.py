"""What masks say: which keys positions hide, which conditions and biases depend on the inputs.

A mask that only sizes and constants decide is evaluated at two bindings of its symbols and compared
with a window: query s sees the keys t with s + offset - left <= t <= s + offset + right. Causal masks
are windows, whether a triangle was cut from a constant, compared from ranges or built by trilu.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regraft.ir.constants import constant_of
from regraft.ir.dims import Dim, DimLike, Symbol, bind, known_equal, symbols_of
from regraft.ir.errors import RegraftError
from regraft.ir.evaluate import evaluate_node
from regraft.ir.graph import Node, Value
from regraft.ir.ops import arithmetic, logical, repeating
from regraft.ir.opspec import AttrKind, Trait
from regraft.passes.analysis.attention_scores import Cond, Term
from regraft.passes.analysis.views import Axis, leaves
from regraft.passes.cleanup.facts import uniform

Array = np.ndarray[Any, Any]

_Contents = tuple[tuple[tuple[Mapping[str, int], Array], ...], ...]
"""For each of two sizes, the content with distinct and with equal sizes, where the graph runs."""

_MAX_NODES = 80
_MAX_SUMS = 4
_MAX_SIZE = 2048
_MAX_ELEMENTS = 1 << 23
_HIDDEN = -1000.0


@dataclass(frozen=True, slots=True)
class Window:
    """Keys that positions leave visible; see `attention`.

    Args:
        offset: Key position of the first query.
        left: Keys before a query's own that it sees, -1: all.
        right: Keys after it, -1: all.
    """

    offset: DimLike
    left: int
    right: int


ALL = Window(0, -1, -1)
"""Every key is visible."""


@dataclass(slots=True)
class Masks:
    """The masks of one attention, taken apart.

    Attributes:
        window: What positions hide.
        conds: Conditions that hide keys altogether.
        soft: Conditions that lower scores to a finite number.
        terms: What is added to the scores.
        seen: The window that all masks together contain, also those that stay as they are.
        hiding: Conditions on the inputs that are part of `terms`.
        has_bias: Whether one of the terms is no mask.
        num_read: Masks of positions that became the window, or hid nothing.
    """

    window: Window = ALL
    conds: list[Cond] = field(default_factory=list)
    soft: list[Cond] = field(default_factory=list)
    terms: list[Term] = field(default_factory=list)
    seen: Window = ALL
    hiding: list[Term] = field(default_factory=list)
    has_bias: bool = False
    num_read: int = 0


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where masks apply: atoms of the queries' positions, of the keys, and (S, T)."""

    rows: Axis
    keys: Axis
    sizes: tuple[DimLike, DimLike]


class MaskReader:
    """Reads masks; one per analysis, so that the mask that all layers share is evaluated once.

    Args:
        data: The values that depend on the content of inputs.
    """

    def __init__(self, data: set[Value]) -> None:
        self._data = data
        self._arrays: dict[Value, _Contents | None] = {}

    def read(
        self,
        conds: Iterable[Cond],
        terms: Iterable[Term],
        rows: Axis,
        keys: Axis,
        sizes: tuple[DimLike, DimLike],
    ) -> Masks:
        """Takes masks apart.

        A row without any visible key keeps its meaning: where a mask that depends on the inputs
        may hide the rest, a finite fill of a causal mask stays an added number.

        Args:
            conds: Conditions that hide keys.
            terms: What is added to the scores.
            rows: Atoms of the queries' positions.
            keys: Atoms of the keys.
            sizes: (S, T).
        """
        frame = _Frame(rows, keys, sizes)
        masks = Masks()
        windows: list[tuple[Window, Cond | Term]] = []  # with what stands for it otherwise
        for cond in conds:
            self._cond(masks, cond, frame, windows)
        for term in terms:
            self._added(masks, term, frame, windows)
        others = [*(c.term for c in (*masks.conds, *masks.soft)), *masks.terms]
        is_alone = not any(term.value in self._data for term in others)
        for window, source in windows:
            joint = joined(masks.window, window) if is_alone else None
            if joint is not None:
                masks.window = joint
                masks.num_read += 1
            elif isinstance(source, Term):
                masks.terms.append(source)
            else:
                masks.soft.append(source)
            masks.seen = joined(masks.seen, window) or masks.seen
        masks.seen = joined(masks.seen, masks.window) or masks.seen
        return masks

    def _cond(
        self, masks: Masks, cond: Cond, frame: _Frame, windows: list[tuple[Window, Cond | Term]]
    ) -> None:
        is_hard = cond.fill == -np.inf
        for part in _parts(cond):
            if part.term.value not in self._data:
                window = self._window(part, frame)
                if window is not None and not is_hard:
                    windows.append((window, part))
                    continue
                joint = None if window is None else joined(masks.window, window)
                if joint is not None:
                    masks.window = joint
                    masks.num_read += 1
                    continue
            (masks.conds if is_hard else masks.soft).append(part)

    def _added(
        self, masks: Masks, term: Term, frame: _Frame, windows: list[tuple[Window, Cond | Term]]
    ) -> None:
        cond = _as_cond(term)
        if cond is not None and cond.fill == -np.inf:
            self._cond(masks, cond, frame, windows)
            return
        if term.value not in self._data:
            window = self._window(Cond(term, hides=False, fill=term.factor), frame)
            if window is not None:
                windows.append((window, term))
                return
        masks.terms.append(term)
        self._note(masks, term, frame)

    def _note(self, masks: Masks, term: Term, frame: _Frame, depth: int = 0) -> None:
        """Notes what an added mask that stays as it is consists of."""
        cond, node = _as_cond(term), term.value.producer
        if cond is not None:
            self._note_cond(masks, cond, frame)
            return
        if node is not None and node.op is logical.where and depth < _MAX_SUMS:
            fills = [uniform(value) for value in node.inputs[1:]]
            for i, fill in enumerate(fills):
                shown, condition = node.inputs[2 - i], node.inputs[0]
                if fill is None or fill > _HIDDEN or shown is None or condition is None:
                    continue
                parts = _narrowed(condition, term), _narrowed(shown, term)
                if parts[0] is not None and parts[1] is not None:
                    self._note_cond(masks, Cond(parts[0], i == 0, fill), frame)
                    self._note(masks, parts[1], frame, depth + 1)
                    return
        if node is not None and node.op is arithmetic.add and depth < _MAX_SUMS:
            operands = [None if v is None else _narrowed(v, term) for v in node.inputs]
            if None not in operands:
                for operand in operands:
                    if operand is not None:
                        self._note(masks, operand, frame, depth + 1)
                return
        if term.value not in self._data:
            window = self._window(Cond(term, hides=False, fill=term.factor), frame)
            if window is not None:
                masks.seen = joined(masks.seen, window) or masks.seen
                return
        masks.has_bias = True

    def _note_cond(self, masks: Masks, cond: Cond, frame: _Frame) -> None:
        for part in _parts(cond):
            window = None if part.term.value in self._data else self._window(part, frame)
            if window is None:
                masks.hiding.append(part.term)
            else:
                masks.seen = joined(masks.seen, window) or masks.seen

    # -- positions ------------------------------------------------------------------------------

    def _window(self, cond: Cond, frame: _Frame) -> Window | None:
        """Returns the window that a mask of positions is, or None."""
        rows, keys, sizes = frame.rows, frame.keys, frame.sizes
        if len(leaves(rows)) > 1:
            return None
        found = self._evaluated(cond.term.value)
        if found is None:
            return None
        bands: list[tuple[Mapping[str, int], int | None, int | None]] = []
        for candidates in found:
            for env, array in candidates:
                S, T = (bind(size, env) for size in sizes)
                if not isinstance(S, int) or not isinstance(T, int):
                    return None
                visible = _visible(cond, array, rows, keys, (S, T))
                if visible is not None:
                    break
            else:
                return None
            band = _band(visible)
            if band is None:
                return None
            bands.append((env, *band))
        return _fit(bands, sizes)

    def _evaluated(self, value: Value) -> _Contents | None:
        """Returns the content of a value of positions at two bindings."""
        if value not in self._arrays:
            self._arrays[value] = _evaluate_twice(value)
        return self._arrays[value]


def _parts(cond: Cond) -> list[Cond]:
    """Splits a conjunction: every part hides on its own."""
    value, hides = cond.term.value, cond.hides
    node = value.producer
    if node is None or cond.term.value.shape is None:
        return [cond]
    if node.op is logical.logical_not and node.inputs[0] is not None:
        return _parts(Cond(Term(node.inputs[0], cond.term.axes), not hides, cond.fill))
    joins = logical.logical_or if hides else logical.logical_and
    if node.op is joins:
        parts: list[Cond] = []
        for operand in node.inputs:
            term = None if operand is None else _narrowed(operand, cond.term)
            if term is None:
                return [cond]
            parts.extend(_parts(Cond(term, hides, cond.fill)))
        return parts
    if node.op is repeating.expand and node.inputs[0] is not None:
        term = _narrowed(node.inputs[0], cond.term)
        return [cond] if term is None else _parts(Cond(term, hides, cond.fill))
    return [cond]


def _narrowed(operand: Value, term: Term) -> Term | None:
    """Returns the term of a broadcast operand of what makes a term's value."""
    if operand.shape is None or len(operand.shape) > len(term.axes):
        return None
    own = term.axes[len(term.axes) - len(operand.shape) :]
    return Term(
        operand,
        [[] if dim == 1 else axis for dim, axis in zip(operand.shape, own, strict=True)],
    )


def _as_cond(term: Term) -> Cond | None:
    """Reads `where(condition, 0, fill)` off an added mask."""
    value = term.value
    axes = term.axes
    node = value.producer
    while node is not None and node.op is repeating.expand and node.inputs[0] is not None:
        inner = _narrowed(node.inputs[0], Term(value, axes))
        if inner is None:
            return None
        value, axes = inner.value, inner.axes
        node = value.producer
    if node is None or node.op is not logical.where or node.inputs[0] is None:
        return None
    yes, no = uniform(node.inputs[1]), uniform(node.inputs[2])
    if yes is None or no is None or {yes, no} & {0.0} == set() or node.inputs[0].shape is None:
        return None
    if node.inputs[0].shape != value.shape:
        return None
    fill = no if yes == 0.0 else yes
    if fill * term.factor > _HIDDEN:
        return None
    return Cond(Term(node.inputs[0], axes), yes != 0.0, fill * term.factor)


def _visible(
    cond: Cond, array: Array, rows: Axis, keys: Axis, sizes: tuple[int, int]
) -> Array | None:
    """Returns which keys a mask leaves visible, bool [S, T]; None when it is no mask of these."""
    row_atoms, key_atoms = leaves(rows), leaves(keys)
    row_axis = key_axis = -1
    for i, axis in enumerate(cond.term.axes):
        atoms = leaves(axis)
        if not atoms:
            continue
        if atoms == row_atoms:
            row_axis = i
        elif atoms == key_atoms:
            key_axis = i
        else:
            return None
    if array.dtype == bool:
        shown = array != cond.hides
    else:
        scaled = array.astype(np.float64) * cond.fill
        shown = scaled == 0
        if not (shown | (scaled <= _HIDDEN)).all():
            return None  # a bias
    kept = [axis for axis in (row_axis, key_axis) if axis >= 0]
    flat = shown.transpose(*kept, *(i for i in range(shown.ndim) if i not in kept))
    flat = flat.reshape(flat.shape[: len(kept)] + (-1,))
    if flat.shape[-1] != 1:
        return None
    flat = flat[..., 0]
    if row_axis < 0:
        flat = flat[None]
    if key_axis < 0:
        flat = flat[..., None]
    if any(size not in (1, full) for size, full in zip(flat.shape, sizes, strict=True)):
        return None
    visible = np.broadcast_to(flat, sizes)
    return visible if visible.any(axis=1).all() else None


def _band(visible: Array) -> tuple[int | None, int | None] | None:
    """Returns (least, largest) t - s that is visible, None where unbounded; None for no band."""
    S, T = visible.shape
    distance = np.arange(T) - np.arange(S)[:, None]
    shown = distance[visible]
    low, high = int(shown.min()), int(shown.max())
    if not np.array_equal(visible, (distance >= low) & (distance <= high)):
        return None
    return (None if low == -(S - 1) else low), (None if high == T - 1 else high)


def _fit(
    bands: list[tuple[Mapping[str, int], int | None, int | None]],
    sizes: tuple[DimLike, DimLike],
) -> Window | None:
    """Returns the window whose bounds the bands have at every binding."""
    highs = [high for _, _, high in bands]
    lows = [low for _, low, _ in bands]
    if all(low is None for low in lows) and all(high is None for high in highs):
        return ALL
    if None in highs and any(high is not None for high in highs):
        return None
    if None in lows and any(low is not None for low in lows):
        return None
    S, T = sizes
    anchors = highs if highs[0] is not None else lows
    for offset in (0, T - S):
        if offset == 0 and not known_equal(S, T) and _are_equal(bands, sizes):
            return None  # the sizes do not tell where the first query stands
        shifts = {
            anchor - (value if isinstance(value, int) else 0)
            for (env, _, _), anchor in zip(bands, anchors, strict=True)
            if anchor is not None and isinstance(value := bind(offset, env), int)
        }
        if len(shifts) != 1:
            continue
        shift = shifts.pop()
        if highs[0] is None:
            return Window(offset, -shift, -1) if shift <= 0 else None
        if lows[0] is None:
            return Window(offset, -1, shift) if shift >= 0 else None
        widths = {high - low for _, low, high in bands if low is not None and high is not None}
        if len(widths) == 1 and 0 <= shift <= (width := widths.pop()):
            return Window(offset, width - shift, shift)
    return None


def _are_equal(
    bands: list[tuple[Mapping[str, int], int | None, int | None]],
    sizes: tuple[DimLike, DimLike],
) -> bool:
    return all(bind(sizes[0], env) == bind(sizes[1], env) for env, _, _ in bands)


def joined(a: Window, b: Window) -> Window | None:
    """Returns the keys that both windows show, None when that is no window."""
    if a == ALL or b == ALL:
        return b if a == ALL else a
    if a.offset != b.offset:
        return None
    left = max(a.left, b.left) if -1 in (a.left, b.left) else min(a.left, b.left)
    right = max(a.right, b.right) if -1 in (a.right, b.right) else min(a.right, b.right)
    return Window(a.offset, left, right)


# -- evaluation -------------------------------------------------------------------------------------


def _evaluate_twice(value: Value) -> _Contents | None:
    nodes = _cone(value)
    if nodes is None:
        return None
    symbols = _symbols(value, nodes)
    constant = constant_of(value, 1 << 26)
    if constant is not None:
        return ((({}, constant),), (({}, constant),))
    largest = _largest_number(nodes)
    if largest > _MAX_SIZE:
        return None
    results = []
    for first in (largest + 3, largest + 8):
        candidates: list[tuple[Mapping[str, int], Array]] = []
        for step in (2, 0):
            env = {s.name: _clamped(first + step * i, s) for i, s in enumerate(symbols)}
            array = _evaluate(value, nodes, env) if _is_consistent(value, env) else None
            if array is not None:
                candidates.append((env, array))
        if not candidates:
            return None
        results.append(tuple(candidates))
    return tuple(results)


def _is_consistent(value: Value, env: Mapping[str, int]) -> bool:
    """Whether sizes that the graph assumes equal are equal."""
    graph = value.owner
    if graph is None:
        return False
    for left, right in graph.scope.assumptions:
        a, b = bind(left, env), bind(right, env)
        if isinstance(a, int) and isinstance(b, int) and a != b:
            return False
    return True


def _cone(value: Value) -> list[Node] | None:
    """Returns the nodes that a value of positions is computed by, in order; None when too many."""
    found: dict[Node, None] = {}
    stack = [value]
    while stack:
        node = stack.pop().producer
        if node is None:
            return None
        if node in found:
            continue
        found[node] = None
        if len(found) > _MAX_NODES or node.bodies or not node.op.is_pure or node.op.eval is None:
            return None
        if _content(node) is None:
            stack.extend(v for v in node.inputs if v is not None)
    return sorted(found, key=lambda node: node.order)


def _content(node: Node) -> tuple[DimLike, ...] | DimLike | None:
    """Returns the symbolic content of a node's result when it replaces its computation."""
    return None if Trait.CONSTANT in node.op.traits else node.outputs[0].content


def _symbols(value: Value, nodes: list[Node]) -> list[Symbol]:
    found: set[Symbol] = set(symbols_of(value.shape or ()))
    for node in nodes:
        content = _content(node)
        if content is not None:
            found |= symbols_of(content if isinstance(content, tuple) else (content,))
        for attr in node.op.all_attrs.values():
            given = node.attrs.get(attr.name)
            if attr.kind in (AttrKind.DIM, AttrKind.DIMS) and given is not None:
                found |= symbols_of(given if isinstance(given, tuple) else (given,))
    return sorted((s for s in found if not s.defined), key=lambda symbol: symbol.name)


def _largest_number(nodes: list[Node]) -> int:
    """Returns the largest small integer constant: a window may be that wide."""
    largest = 1
    for node in nodes:
        if Trait.CONSTANT not in node.op.traits:
            continue
        array = constant_of(node.outputs[0], 64)
        if array is not None and array.size == 1 and array.dtype.kind in "iuf":
            number = abs(float(array.reshape(-1)[0]))
            if number < 1e6 and number == int(number):
                largest = max(largest, int(number))
    return largest


def _clamped(size: int, symbol: Symbol) -> int:
    size = -(-max(size, symbol.lo) // symbol.multiple_of) * symbol.multiple_of
    return size if symbol.hi is None else min(size, symbol.hi)


def _evaluate(value: Value, nodes: list[Node], env: dict[str, int]) -> Array | None:
    known: dict[Value, Any] = {}
    for node in nodes:
        content = _content(node)
        out = node.outputs[0]
        if content is not None:
            bound = (
                tuple(bind(dim, env) for dim in content)
                if isinstance(content, tuple)
                else bind(content, env)
            )
            if isinstance(bound, Dim) or (
                isinstance(bound, tuple) and any(isinstance(dim, Dim) for dim in bound)
            ):
                return None
            known[out] = np.asarray(bound, out.dtype.numpy if out.dtype else np.int64)
            continue
        if not _is_small(node, env):
            return None
        operands = [None if v is None else known[v] for v in node.inputs]
        try:
            results = evaluate_node(node, operands, env, oracle=True)
        except (RegraftError, ValueError, IndexError):
            return None  # these sizes do not fit the graph
        known.update(zip(node.outputs, results, strict=False))
    array: Array = known[value]
    return array


def _is_small(node: Node, env: Mapping[str, int]) -> bool:
    for value in node.outputs:
        total = 1
        for dim in value.shape or ():
            size = bind(dim, env)
            total *= size if isinstance(size, int) else 1
        if total > _MAX_ELEMENTS:
            return False
    return True

