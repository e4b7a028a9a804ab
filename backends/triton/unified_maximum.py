"""Finds a unified maximum for each attention to a cache: from the scores that samples make.

A kernel that shares keys out among programs adds exp(score - phi) with one phi for all spans of
keys, which saves looking for each span's own maximum; a span whose largest score leaves what the
dtype holds around phi is computed again. So phi is placed such that most spans stay inside, in the
middle of the room that is left, and none is used where too many would be computed twice.
Source: Hong et al. 2023 (FlashDecoding++), section 3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.backends.triton.kernel_emits import is_step, is_tiled_attention, unified_attention
from regraft.backends.triton.node_places import place_of
from regraft.ir.builder import Builder
from regraft.ir.dims import bind
from regraft.ir.evaluate import bind_inputs
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops.attention import attention, visible_keys
from regraft.ir.types import DType

if TYPE_CHECKING:  # `passes` stands beside this layer
    from regraft.passes.protocol import ActivationSource, Samples

Array = np.ndarray[Any, Any]

SPAN = 64
"""Keys that a maximum is observed over: a program takes as many or a multiple."""
MAX_OUTSIDE = 0.05
"""Share of spans that may be computed twice: more costs what a unified maximum saves."""
HELD = {DType.F16: (-8.0, 11.0), DType.BF16: (-60.0, 60.0), DType.F32: (-60.0, 60.0)}
"""Differences from phi that sums and products in a dtype hold, as `attention_decode` has them."""

_STEP = 0.125
_LOWEST = np.float32(-(2.0**31))
_ROWS = 64  # queries whose scores are in memory at once


@dataclass(frozen=True, slots=True)
class UnifiedMaximum:
    """What samples say of the scores of one attention.

    Args:
        node: Where the model has it, as `place_of` says.
        phi: The unified maximum; 0 where none is used.
        least: Least difference from it that is not computed again.
        most: Greatest one.
        observed: Smallest and largest maximum of a span; None where there was none.
        spans: Spans of `SPAN` keys that samples had, for all heads of a key head together.
        outside: Share of those that would be computed again.
        reason: Why none is used; empty where one is.
    """

    node: str
    phi: float = 0.0
    least: float = 0.0
    most: float = 0.0
    observed: tuple[float, float] | None = None
    spans: int = 0
    outside: float = 0.0
    reason: str = ""

    def row(self) -> dict[str, Any]:
        """Returns what a report says of it."""
        observed = None if self.observed is None else list(self.observed)
        found = {
            "attention": self.node, "observed": observed, "spans": self.spans,
            "outside": self.outside,
        }  # fmt: skip
        if self.reason:
            return {**found, "maximum": None, "reason": self.reason}
        return {**found, "maximum": self.phi, "range": [self.least, self.most]}


def steps_of(module: Module) -> list[Node]:
    """Returns the attention nodes whose keys a kernel may share out, in order."""
    return [
        node
        for node in module.graph
        if node.op is attention and is_tiled_attention(node) and is_step(node)
    ]


@dataclass(slots=True)
class _Seen:
    """Maxima of spans: how often each pair of steps of `_STEP`, least and greatest of a group."""

    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)
    least: float = float("inf")
    most: float = float("-inf")

    def add(self, maxima: Array) -> None:
        """Adds maxima [spans, heads of a group]; a span without a visible key is none."""
        shown = maxima[np.isfinite(maxima).all(axis=1)]
        if not shown.size:
            return
        # a span that a mask of the least float hides is far below any other: computed twice
        low, high = np.maximum(shown.min(axis=1), _LOWEST), np.maximum(shown.max(axis=1), _LOWEST)
        self.least = min(self.least, float(low.min()))
        self.most = max(self.most, float(high.max()))
        steps = np.stack([np.floor(low / _STEP), np.ceil(high / _STEP)], axis=1).astype(np.int64)
        for pair, count in zip(*np.unique(steps, axis=0, return_counts=True), strict=True):
            self.pairs[int(pair[0]), int(pair[1])] += int(count)


def unified_maxima(
    module: Module, samples: Samples, activations: ActivationSource
) -> list[UnifiedMaximum]:
    """Returns what samples say of each attention to a cache, in the order of `steps_of`.

    Samples stream: what is kept of one is how often maxima were where.

    Args:
        module: As it will be written, before weights are packed.
        samples: Inputs by name; further entries are left out.
        activations: Gives queries and keys.
    """
    nodes = steps_of(module)
    places = _names(nodes)
    if not nodes or not samples:
        return [UnifiedMaximum(places[node], reason="there are no samples") for node in nodes]
    names = [str(value.name) for value in module.graph.inputs]
    lacking = [name for name in names if any(name not in sample for sample in samples)]
    if lacking:
        reason = f"samples have no `{lacking[0]}`, which a pass added"
        return [UnifiedMaximum(places[node], reason=reason) for node in nodes]
    given = [{name: sample[name] for name in names} for sample in samples]
    seen = {node: _Seen() for node in nodes}
    unplaced: set[Node] = set()
    values = list(dict.fromkeys(value for node in nodes for value in _operands(node).values()))
    for sample, found in zip(given, activations.activations(module, values, given), strict=True):
        sizes = bind_inputs(module.graph, sample)
        for node in nodes:
            arrays = {name: found[value] for name, value in _operands(node).items()}
            offset = _offset(node, arrays, sizes)
            if isinstance(offset, str):
                unplaced.add(node)
                continue
            for maxima in span_maxima(node.attrs, arrays, offset):
                seen[node].add(maxima)
    return [
        UnifiedMaximum(places[node], reason="its positions are known at run time alone")
        if node in unplaced
        else placed(places[node], seen[node], node.inputs[0])
        for node in nodes
    ]


def _names(nodes: Sequence[Node]) -> dict[Node, str]:
    """Returns where the model has each attention; of one without a place, its name or number."""
    return {
        node: place_of(node) or node.output.name or f"attention {idx}"
        for idx, node in enumerate(nodes)
    }


def _operands(node: Node) -> dict[str, Value]:
    names = ("q", "k", "mask", "kv_lengths", "causal_offset")
    given = {name: node.operand(name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def _offset(node: Node, arrays: Mapping[str, Array], sizes: Mapping[str, int]) -> Any:
    """Returns the key position of the first query, None where there is no window."""
    if "causal_offset" in arrays:
        return arrays["causal_offset"]
    static = node.attrs["causal_offset"]
    if static is None:
        return None
    bound = bind(static, sizes)
    return bound if isinstance(bound, int) else str(bound)


def span_maxima(attrs: Any, arrays: Mapping[str, Array], offset: Any) -> Iterator[Array]:
    """Yields the largest scores of spans of keys, [spans, heads of a group], by some queries.

    Args:
        attrs: Of the node.
        arrays: Its operands `q` [B, H, S, D] and `k` [B, G, T, D], `mask` and `kv_lengths`.
        offset: Key position of the first query.
    """
    q, k = (arrays[name].astype(np.float32) for name in ("q", "k"))
    B, H, S, D = q.shape
    G, T = k.shape[1:3]
    shown = visible_keys(attrs, S, T, arrays.get("kv_lengths"), offset)
    visible = None if shown is None else np.broadcast_to(shown, (B, 1, S, T))
    mask = arrays.get("mask")
    added = None if mask is None else np.broadcast_to(mask, (B, H, S, T))
    starts = np.arange(0, T, SPAN)
    if not T:
        return
    for row in range(0, S, _ROWS):
        part = q[:, :, row : row + _ROWS].reshape(B, G, -1, D)
        scores = np.matmul(part, k.swapaxes(-1, -2)) * np.float32(attrs["scale"])
        scores = scores.reshape(B, H, -1, T)
        if attrs["softcap"] > 0:
            scores = attrs["softcap"] * np.tanh(scores / attrs["softcap"])
        if added is not None:
            part = added[:, :, row : row + _ROWS]
            scores = np.where(part, scores, -np.inf) if part.dtype == bool else scores + part
        if visible is not None:
            scores = np.where(visible[:, :, row : row + _ROWS], scores, -np.inf)
        maxima = np.maximum.reduceat(scores, starts, axis=3)
        grouped = maxima.reshape(B, G, H // G, -1, len(starts))
        yield np.moveaxis(grouped, 2, -1).reshape(-1, H // G)


def placed(name: str, seen: _Seen, q: Value | None) -> UnifiedMaximum:
    """Returns the maximum around which most spans stay, in the middle of the room for it."""
    spans = seen.pairs.total()
    if not spans or q is None or q.dtype not in HELD:
        return UnifiedMaximum(name, reason="no sample had a visible key")
    least, most = HELD[q.dtype]
    width = int((most - least) / _STEP)
    pairs = np.array(list(seen.pairs))
    counts = np.array(list(seen.pairs.values()))
    best, inside = (0, 0), -1
    for start in sorted({int(low) for low in pairs[:, 0]}):
        held = (pairs[:, 0] >= start) & (pairs[:, 1] <= start + width)
        count = int(counts[held].sum())
        if count > inside:
            end = int(pairs[held, 1].max()) if count else start + width
            best, inside = (start, end), count
    outside = 1 - inside / spans
    phi = (best[0] + best[1]) / 2 * _STEP - (least + most) / 2
    observed = (round(seen.least, 4), round(seen.most, 4))
    reason = ""
    if outside > MAX_OUTSIDE:
        reason = f"{outside:.1%} of spans would be computed twice, above {MAX_OUTSIDE:.0%}"
    return UnifiedMaximum(name, phi, least, most, observed, spans, round(outside, 6), reason)


def with_unified_maxima(module: Module, maxima: Sequence[UnifiedMaximum]) -> Module:
    """Returns the module, or a copy whose attention to caches says which maximum it uses.

    Args:
        module: The module.
        maxima: One for each of `steps_of(module)`, or none at all.
    """
    if all(found.reason for found in maxima):
        return module
    module = module.clone()
    for node, found in zip(steps_of(module), maxima, strict=True):
        if not found.reason:
            attrs = {**node.attrs, "unified": (found.phi, found.least, found.most)}
            y = Builder(module.graph, node, node.loc).op(unified_attention, *node.inputs, **attrs)
            module.graph.replace(node, [y])
    return module
