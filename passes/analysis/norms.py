"""Normalizations, however spelled: layer, RMS, L2, group and instance norms.

Where a statistic (what follows from reductions) meets a value that varies along the reduced axes, a
norm may end; constants after it may be its gain and shift. The cone from there back to one varying
value is then fitted (`norm_fit`), once per structure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from regraft.ir.dims import Dim
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import arithmetic, norm, response_norm
from regraft.passes.analysis.cones import (
    REDUCTIONS,
    Cone,
    ConeFinder,
    is_pointwise,
    loses_nothing,
    same_sizes,
)
from regraft.passes.analysis.norm_fit import NearNorm, NormFit, Term, fit, reduced
from regraft.passes.protocol import Skip

_MAX_TAIL = 5
"""Most nodes between the last statistic and the end of a norm: casts, gain, shift."""


_WHOLE = frozenset({response_norm.lp_norm, response_norm.mean_variance_norm})
"""Operators that take a statistic and divide by it."""


@dataclass(frozen=True, slots=True)
class Scale:
    """`factor * product(values)`; the values are constants of the graph.

    Args:
        factor: A number.
        values: Constants, each broadcasting to what is normalized.
    """

    factor: float = 1.0
    values: tuple[Value, ...] = ()

    @property
    def is_one(self) -> bool:
        """Whether it is the number one."""
        return self.factor == 1 and not self.values


@dataclass(frozen=True, slots=True, eq=False)
class NormBlock:
    """A normalization.

    Args:
        kind: `layer_norm`, `rms_norm`, `l2_norm`, `group_norm`, `instance_norm` or `batch_norm`
            (with running statistics, which are among the operands of its node).
        input: What is normalized.
        output: The result.
        axes: Normalized axes, counted from the end; of a group norm, those after the channels.
        epsilon: Added to the variance or mean square (of l2_norm: to the sum of squares).
        gain: What the normal values are multiplied by.
        shift: What is added, None for nothing.
        nodes: What computes it, the last node first.
        groups: Groups of channels of a group norm.
    """

    kind: str
    input: Value
    output: Value
    axes: tuple[int, ...]
    epsilon: float
    gain: Scale
    shift: Scale | None
    nodes: tuple[Node, ...]
    groups: int | None = None

    @property
    def is_canonical(self) -> bool:
        """Whether one canonical operator computes it."""
        return len(self.nodes) == 1 and self.nodes[0].op in norm.OPS

    def describe(self) -> dict[str, object]:
        """Returns it as JSON data."""
        return {
            "kind": self.kind,
            "input": self.input.name,
            "output": self.output.name,
            "axes": list(self.axes),
            "epsilon": self.epsilon,
            "gain": not self.gain.is_one,
            "shift": self.shift is not None,
            "canonical": self.is_canonical,
            **({} if self.groups is None else {"groups": self.groups}),
        }


@dataclass(slots=True)
class NormSearch:
    """What a search found.

    Attributes:
        norms: Normalizations in topological order.
        skipped: Cones that nearly are one.
    """

    norms: list[NormBlock] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)


class NormFinder:
    """Finds the normalizations of graphs; fits equal structures once."""

    __slots__ = ("_finder", "_known")

    def __init__(self) -> None:
        self._finder = ConeFinder(reductions=True)
        self._known: dict[int, NormFit | NearNorm | None] = {}

    def find(self, graph: Graph, taken: set[Node]) -> NormSearch:
        """Returns the normalizations of one graph.

        Args:
            graph: The graph; bodies are graphs of their own.
            taken: Gains the nodes of every normalization found.

        Cost: O(nodes x nodes of a cone).
        """
        self._finder.scan(graph)
        search = NormSearch()
        sharing: list[NormBlock] = []
        for node in reversed(list(self._ends(graph))):
            if node in taken:
                continue
            own = canonical_norm(node)
            if own is not None:
                search.norms.append(own)
                taken.add(node)
                continue
            for end in self._branches(node):
                self._judge(end, search, sharing, taken)
        search.norms += _sharing(sharing, taken, search)
        search.norms.sort(key=_order)
        return search

    def _judge(
        self, node: Node, search: NormSearch, sharing: list[NormBlock], taken: set[Node]
    ) -> None:
        """Adds the norm that ends at or after a node to what it belongs to."""
        cone, found = self._best(node)
        if isinstance(found, NearNorm):
            name = node.outputs[0].name if cone is None else cone.y.name
            search.skipped.append(Skip(str(name), found.reason))
        elif found is not None and cone is not None:
            block = _block(cone, found)
            if _is_over_batch(block):
                return
            if cone.escaping:
                sharing.append(block)
            else:
                search.norms.append(block)
                taken.update(block.nodes)

    def _branches(self, node: Node) -> list[Node]:
        """Returns the gains that share normal values, else the node that makes those."""
        users = [user for user, _ in node.outputs[0]._uses if isinstance(user, Node)]
        if len(users) == node.outputs[0].num_uses > 1 and all(map(self._is_gain, users)):
            return users
        return [node]

    def _is_gain(self, node: Node) -> bool:
        """Returns whether a node multiplies by a constant per position."""
        if node.op is not arithmetic.mul:
            return False
        constants = [self._finder.constant(value) for value in node._inputs if value is not None]
        return any(known is not None and known.number is None for known in constants)

    def _ends(self, graph: Graph) -> Iterator[Node]:
        """Yields canonical norms, and nodes where a statistic meets what varies."""
        statistics: set[Value] = set()
        finder = self._finder
        for node in graph:
            op = node.op
            if op in norm.OPS or op in _WHOLE:
                yield node
            elif op in REDUCTIONS:
                statistics.add(node.outputs[0])
            elif statistics and finder.joins(op):
                kinds = {
                    value in statistics
                    for value in node._inputs
                    if value is not None and not finder.is_constant(value)
                }
                if kinds == {True}:
                    statistics.add(node.outputs[0])
                elif len(kinds) == 2:
                    yield node

    def _best(self, node: Node) -> tuple[Cone | None, NormFit | NearNorm | None]:
        """Returns the largest norm that ends in the constants after `node`, or the nearest miss.

        A number that follows is left to what follows, where the rest is a norm without it: the
        scale of attention is no gain.
        """
        scaled: tuple[Cone, NormFit] | None = None
        near: tuple[Cone | None, NearNorm | None] = (None, None)
        for y in reversed(list(self._tail(node))):
            best, miss = self._of(y)
            near = miss or near
            if best is not None and best[1].gain.factor == 1:
                return best
            scaled = scaled or best
        return near if scaled is None else scaled

    def _of(self, y: Value) -> tuple[tuple[Cone, NormFit] | None, tuple[Cone, NearNorm] | None]:
        """Returns the norm whose result is `y`, and how a cone of `y` nearly is one."""
        best: tuple[Cone, NormFit] | None = None
        near: tuple[Cone, NearNorm] | None = None
        for cone in self._finder.cones(y):
            if best is not None and cone.escaping and not best[0].escaping:
                break
            if not _is_candidate(cone):
                continue
            if cone.key not in self._known:
                self._known[cone.key] = fit(cone)
            found = self._known[cone.key]
            if isinstance(found, NormFit) and (best is None or _centres(best[1], found)):
                best = cone, found
            elif isinstance(found, NearNorm):
                near = cone, found
        return best, near

    def _tail(self, node: Node) -> Iterator[Value]:
        """Yields the result of `node`, and what constants and casts alone make of it."""
        value = node.outputs[0]
        yield value
        for _ in range(_MAX_TAIL):
            if len(value._uses) != 1:
                return
            ((user, _),) = value._uses
            if not isinstance(user, Node) or not is_pointwise(user.op):
                return
            others = (v for v in user._inputs if v is not None and v is not value)
            if not all(map(self._finder.is_constant, others)):
                return
            value = user.outputs[0]
            yield value


def canonical_norm(node: Node) -> NormBlock | None:
    """Returns the block of a canonical operator's node, None for other nodes."""
    op, attrs = node.op, node.attrs
    if op not in norm.OPS:
        return None
    x = node.inputs[0]
    if x is None or x.rank is None or node.inputs[1] is None:
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    first = attrs["axis"] if "axis" in attrs else 2 - x.rank
    first = first - x.rank if first >= 0 else first
    return NormBlock(
        op.name, x, node.outputs[0], tuple(range(first, 0)), attrs["epsilon"],
        Scale(1.0, (node.inputs[1],)), None if bias is None else Scale(1.0, (bias,)), (node,),
        attrs.get("groups"),
    )  # fmt: skip


def _centres(inner: NormFit, outer: NormFit) -> bool:
    """Returns whether a larger cone is the same norm with its centring.

    A norm of a norm is one norm, too, but of another epsilon.
    """
    same_epsilon = abs(outer.epsilon - inner.epsilon) <= 1e-6 * inner.epsilon
    return (inner.kind, outer.kind) == ("rms_norm", "layer_norm") and same_epsilon


def _is_candidate(cone: Cone) -> bool:
    """Returns whether a cone keeps the type, takes statistics and loses no precision inside."""
    x, y = cone.x, cone.y
    if x.dtype is not y.dtype or x.dtype is None or not x.dtype.is_float or not same_sizes(x, y):
        return False
    if reduced(cone) is None:
        return False
    return loses_nothing(cone)


def _block(cone: Cone, found: NormFit) -> NormBlock:
    shift = None if found.shift.is_zero else _scale(cone, found.shift)
    return NormBlock(
        found.kind, cone.x, cone.y, found.axes, found.epsilon, _scale(cone, found.gain), shift,
        cone.nodes,
    )  # fmt: skip


def _scale(cone: Cone, term: Term) -> Scale:
    return Scale(term.factor, tuple(cone.vectors[idx] for idx in term.vectors))


def _sharing(blocks: Sequence[NormBlock], taken: set[Node], search: NormSearch) -> list[NormBlock]:
    """Returns the norms that share statistics among themselves and with nothing else."""
    kept = list(blocks)
    while True:
        inside = taken.union(*(block.nodes for block in kept))
        rest = [block for block in kept if not _escapes(block, inside)]
        if len(rest) == len(kept):
            taken.update(inside)
            return kept
        for block in kept:
            if block not in rest:
                name = str(block.output.name)
                search.skipped.append(
                    Skip(name, f"something else uses the inside of this {block.kind}")
                )
        kept = rest


def _is_over_batch(block: NormBlock) -> bool:
    """Whether examples are standardized together: a statistic over the first axis of several.

    A norm of one example may lie along a first axis too, but has a known size there, and a gain.
    """
    shape = block.input.shape or ()
    if block.kind not in ("layer_norm", "rms_norm") or len(shape) < 2:
        return False
    if -len(shape) not in block.axes or len(block.axes) == len(shape):
        return False
    return isinstance(shape[0], Dim) or (block.gain.is_one and block.shift is None)


def _escapes(block: NormBlock, inside: set[Node]) -> bool:
    return any(
        user not in inside
        for node in block.nodes
        for value in node.outputs
        if value is not block.output
        for user, _ in value._uses
    )


def _order(block: NormBlock) -> int:
    return block.nodes[0].order
