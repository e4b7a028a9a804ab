"""What masks say: which keys positions hide, which conditions and biases depend on the inputs.

A mask that only sizes and constants decide is evaluated and compared with a window. Causal masks
are windows, whether a triangle was cut from a constant, compared from ranges or built by trilu.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regraft.ir.dims import DimLike, bind
from regraft.ir.graph import Value
from regraft.ir.ops import arithmetic, logical, repeating
from regraft.passes.analysis.attention_scores import Cond, Term
from regraft.passes.analysis.attention_windows import (
    ALL,
    Bands,
    Window,
    band_of,
    fit_window,
    joined,
)
from regraft.passes.analysis.fills import filled
from regraft.passes.analysis.positions import Contents, evaluate_twice
from regraft.passes.analysis.views import Axis, leaves

Array = np.ndarray[Any, Any]

_MAX_SUMS = 4
_HIDDEN = -1000.0


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
        self._arrays: dict[Value, Contents | None] = {}

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

    def is_product(self, factor: Term, added: Term) -> bool:
        """Whether scores times a mask of 0 and 1 plus another hide what the first makes 0.

        `scores * m - 1e4 * (1 - m)` is then `scores - 1e4 * (1 - m)`: no hidden score counts.
        """
        if factor.value in self._data or added.value in self._data:
            return False
        shown, taken = self._evaluated(factor.value), self._evaluated(added.value)
        if shown is None or taken is None:
            return False
        for (first, *_), (second, *_) in zip(shown, taken, strict=True):
            mask, plus = first[1], second[1].astype(np.float64) * added.factor
            if mask.shape != plus.shape or not np.isin(mask, (0, 1)).all():
                return False
            if plus[mask == 1].any() or (plus[mask == 0] > _HIDDEN).any():
                return False
        return True

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
            self._see_padded(masks, part, frame)

    def _see_padded(self, masks: Masks, cond: Cond, frame: _Frame) -> None:
        """Notes the window of a mask that is shorter than the keys and filled up with False."""
        node = cond.term.value.producer
        if node is None or node.op is not repeating.pad or cond.hides or node.inputs[0] is None:
            return
        if node.attrs["mode"] != "constant" or filled(node.inputs[2]) != 0.0:
            return
        for part in _parts(Cond(Term(node.inputs[0], cond.term.axes), cond.hides, cond.fill)):
            window = None if part.term.value in self._data else self._window(part, frame)
            if window is not None:
                masks.seen = joined(masks.seen, window) or masks.seen

    def _added(
        self, masks: Masks, term: Term, frame: _Frame, windows: list[tuple[Window, Cond | Term]]
    ) -> None:
        cond = as_cond(term)
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
        cond, node = as_cond(term), term.value.producer
        if cond is not None:
            self._note_cond(masks, cond, frame)
            return
        if node is not None and node.op is logical.where and depth < _MAX_SUMS:
            fills = [filled(value) for value in node.inputs[1:]]
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
        bands: Bands = []
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
            band = band_of(visible)
            if band is None:
                return None
            bands.append((env, *band))
        return fit_window(bands, sizes)

    def _evaluated(self, value: Value) -> Contents | None:
        """Returns the content of a value of positions at two bindings."""
        if value not in self._arrays:
            self._arrays[value] = evaluate_twice(value)
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


def as_cond(term: Term) -> Cond | None:
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
    yes, no = filled(node.inputs[1]), filled(node.inputs[2])
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
    flat = flat.reshape((*flat.shape[: len(kept)], -1))
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
