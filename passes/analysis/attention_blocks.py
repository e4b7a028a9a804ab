"""Attention blocks as passes and reports see them: kind, masks, heads, projections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from regraft.ir.constants import is_constant
from regraft.ir.dims import DimLike
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import cast, conv, gathering, linalg, rotary, slicing
from regraft.passes.analysis.attention_found import Attention
from regraft.passes.analysis.attention_windows import ALL, Window
from regraft.passes.analysis.rotary import Rotary
from regraft.passes.analysis.views import is_movement, leaves, size_of

_MAX_STEPS = 40
_PARTS = frozenset({slicing.split, slicing.slice_, gathering.gather, cast.cast})
_LINEAR = frozenset({linalg.matmul, linalg.gemm, conv.conv})


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """A linear layer that makes queries, keys, values, or the result.

    Args:
        source: What it is applied to.
        weight: Its constant operand.
        node: The operator.
    """

    source: Value
    weight: Value
    node: Node


@dataclass(frozen=True, slots=True, eq=False)
class AttentionBlock:
    """One attention, recognized in any spelling.

    Args:
        attention: Operands, layout, scale and masks.
        kind: `self`, `cross` (keys come from another sequence) or `channel` (channels are mixed).
        window: The keys that positions leave visible, as far as masks say.
        masks: What else takes part: `padding`, `mask`, `bias`, `sinks`.
        has_rotary: Whether queries or keys carry rotary position embedding.
        has_past: Whether keys are appended to earlier ones.
        projections: The linear layers `q`, `k`, `v` and `out`, those that were found.
    """

    attention: Attention
    kind: str
    window: Window
    masks: tuple[str, ...]
    has_rotary: bool
    has_past: bool
    projections: dict[str, Projection]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes between queries, keys, values and the weighted sum."""
        return self.attention.nodes

    @property
    def output(self) -> Value:
        """The weighted sum, before the heads are merged."""
        return self.attention.output

    @property
    def is_causal(self) -> bool:
        """Whether no query sees a later key."""
        return self.window.right == 0

    def describe(self) -> dict[str, object]:
        """Returns it as JSON data."""
        a = self.attention
        return {
            "kind": self.kind,
            "output": self.output.name,
            "heads": _plain(a.num_heads),
            "windows": _plain(size_of(a.layout.windows)),
            "kv_heads": _plain(size_of(a.layout.kv_heads[len(a.layout.windows) :])),
            "kv_groups": _plain(a.layout.kv_groups),
            "head_size": _plain(a.head_size),
            "value_size": _plain(size_of(a.layout.channels)),
            "scale": a.scale,
            "softcap": a.softcap,
            "causal": self.is_causal,
            "window": None if self.window == ALL else [self.window.left, self.window.right],
            "masks": list(self.masks),
            "rotary": self.has_rotary,
            "past": self.has_past,
            "canonical": a.is_canonical,
            "weights": {name: p.weight.name for name, p in self.projections.items()},
            "problem": a.problem or None,
        }


def _plain(size: DimLike) -> object:
    return size if isinstance(size, int) else str(size)


def attention_blocks(
    graph: Graph, found: list[Attention], embeddings: list[Rotary]
) -> list[AttentionBlock]:
    """Returns the attentions of a graph with what surrounds them."""
    turned = {each.output for each in embeddings}
    return [_block(a, turned) for a in found]


def _block(a: Attention, turned: set[Value]) -> AttentionBlock:
    projections = {}
    has_rotary = False
    for name, view in (("q", a.q), ("k", a.k), ("v", a.v)):
        for value in _way_up(view.base):
            node = value.producer
            if node is None:
                break
            is_turned = value in turned or node.op is rotary.rotary_embedding
            has_rotary = has_rotary or (name != "v" and is_turned)
            made = _projection(node)
            if made is not None:
                projections[name] = made
                break
    out = _out_projection(a.output)
    if out is not None:
        projections["out"] = out
    return AttentionBlock(
        a,
        _kind(a, projections),
        a.masks.seen,
        _mask_kinds(a),
        has_rotary,
        _has_past(a),
        projections,
    )


def _way_up(value: Value) -> Iterator[Value]:
    """Yields what a value is made of, up to its projection: the first data operand each time."""
    current: Value | None = value
    for _ in range(_MAX_STEPS):
        if current is None:
            return
        yield current
        node = current.producer
        if node is None:
            return
        operands = [v for v in node.inputs if v is not None and not is_constant(v)]
        if node.op is slicing.concat and (node.attrs["axis"] + 1) % (current.rank or 1):
            operands.reverse()  # new keys come after the past ones; turned channels come first
        same = [v for v in operands if v.rank == current.rank]
        current = next(iter(same or operands), None)


def _projection(node: Node) -> Projection | None:
    if node.op not in _LINEAR:
        return None
    a, b = node.inputs[0], node.inputs[1]
    if a is None or b is None or is_constant(a) == is_constant(b):
        return None
    source, weight = (b, a) if is_constant(a) else (a, b)
    return Projection(source, weight, node)


def _out_projection(output: Value) -> Projection | None:
    value = output
    for _ in range(_MAX_STEPS):
        users = value.users
        if len(users) != 1:
            return None
        made = _projection(users[0])
        if made is not None:
            return made
        if not is_movement(users[0]):
            return None
        value = users[0].outputs[0]
    return None


def _kind(a: Attention, projections: dict[str, Projection]) -> str:
    if a.is_channel:
        return "channel"
    if "q" in projections and "k" in projections:
        q, k = projections["q"].source, projections["k"].source
        return "self" if _is_made_of(k, _root(q)) else "cross"
    q_base, k_base = a.q.base, a.k.base
    if _root(q_base) is _root(k_base):
        return "self"
    same_size = size_of(a.layout.rows) == size_of(a.layout.keys)
    return "self" if same_size else "cross"


def _is_made_of(value: Value, source: Value) -> bool:
    """Whether keys are made of what queries are: of the same value, or of a reduced copy."""
    stack, seen = [_root(value)], set[Value]()
    while stack and len(seen) < _MAX_STEPS:
        current = _root(stack.pop())
        if current is source:
            return True
        if current in seen or current.producer is None:
            continue
        seen.add(current)
        stack += [v for v in current.producer.inputs if v is not None and not is_constant(v)][:1]
    return False


def _root(value: Value) -> Value:
    """Looks through data movement: gemm takes a flat copy of what matmul takes."""
    while value.producer is not None and (
        is_movement(value.producer) or value.producer.op in (slicing.split, slicing.slice_)
    ):
        source = value.producer.inputs[0]
        if source is None:
            break
        value = source
    return value


def _mask_kinds(a: Attention) -> tuple[str, ...]:
    rows, kinds = set(a.layout.rows), []
    conds = [*(c.term for c in (*a.masks.conds, *a.masks.soft)), *a.masks.hiding]
    for term in conds:
        atoms = {leaf for axis in term.axes for leaf in leaves(axis)}
        kinds.append("mask" if atoms & rows else "padding")
    if a.masks.has_bias or a.early:
        kinds.append("bias")
    if a.sinks is not None:
        kinds.append("sinks")
    return tuple(dict.fromkeys(kinds))


def _has_past(a: Attention) -> bool:
    """Whether keys are joined, along their positions, with some that a graph input holds."""
    node = a.k.base.producer
    if node is None or node.op is not slicing.concat:
        return False
    axis = node.attrs["axis"] % len(a.k.base_axes)
    if not set(leaves(a.k.base_axes[axis])) & set(a.layout.keys):
        return False
    return any(value is not None and _is_given(value) for value in node.inputs)


def _is_given(value: Value) -> bool:
    """Whether a value is a graph input, or a part of one."""
    while (node := value.producer) is not None:
        is_part = is_movement(node) or node.op in _PARTS
        if not is_part or node.inputs[0] is None:
            return False
        value = node.inputs[0]
    return True
