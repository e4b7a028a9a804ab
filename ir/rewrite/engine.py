"""The engine: a worklist of nodes, the rules of each node's operator, and a fixpoint.

A rewrite costs what it touches. New nodes are typed as they are made, a value whose type got more
precise has its users inferred anew, dead nodes go at once, and the neighbours of every change are
looked at again.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from regraft.ir.builder import Builder
from regraft.ir.collector import collector_paused
from regraft.ir.errors import RegraftError
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.module import Module, clone_graph
from regraft.ir.opspec import OpSpec
from regraft.ir.rewrite.explain import Explainer, NearMiss, Trace, label
from regraft.ir.rewrite.liveness import is_detached, is_droppable
from regraft.ir.rewrite.retype import Retyper
from regraft.ir.rewrite.rule import Compiled, Observer, Reject, RuleSet

_STEPS_PER_NODE = 100
_MIN_STEPS = 10_000
_RECENT = 1_000


@dataclass(frozen=True, slots=True)
class RewriteStats:
    """What a rewrite did.

    Args:
        changed: Whether anything was rewritten, dropped or typed more precisely.
        counts: Applications by rule.
        num_dropped: Dead nodes that were erased.
        near_misses: Of the rule to explain, deepest first.
    """

    changed: bool
    counts: dict[str, int] = field(default_factory=dict)
    num_dropped: int = 0
    near_misses: tuple[NearMiss, ...] = ()


def rewrite(
    target: Module | Graph,
    rules: RuleSet,
    *,
    max_steps: int | None = None,
    explain: str | None = None,
    start: Iterable[Node] | None = None,
    observer: Observer | None = None,
) -> RewriteStats:
    """Applies rules to a graph and its bodies, in place, until none applies.

    Args:
        target: The module or graph.
        rules: The rules, tried in order at each node.
        max_steps: Limit of applications; default: 100 per node.
        explain: Name of a rule whose near misses are wanted.
        start: Nodes to look at first; default: all.
        observer: Sees every rewrite before the old nodes go.

    Raises:
        RegraftError: When the limit is reached, naming the rules that still apply; or when a rule
            replaces a value by one of another type.

    Cost: O(nodes + what the rewrites touch).
    """
    graph = target.graph if isinstance(target, Module) else target
    compiled = rules.compile()
    explainer = None
    if explain is not None:
        if explain not in {rule.name for rule in compiled}:
            raise KeyError(explain)
        explainer = Explainer(explain)
    rw = Rewriter(graph, compiled, explainer, observer)
    with collector_paused():
        rw.run(graph.walk() if start is None else start, max_steps)
    return RewriteStats(
        rw.changed,
        dict(rw.counts),
        rw.num_dropped,
        () if explainer is None else tuple(explainer.near_misses()),
    )


class Rewriter:
    """What a rule rewrites through, so that the engine knows what to look at again."""

    __slots__ = (
        "_dead", "_droppable", "_explainer", "_mark", "_observer", "_queue", "_queued", "_retyper",
        "_rule", "_rules", "_table", "changed", "counts", "num_dropped",
    )  # fmt: skip

    def __init__(
        self,
        graph: Graph,
        rules: Sequence[Compiled],
        explainer: Explainer | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._rules = rules
        self._explainer = explainer
        self._observer = observer
        self._table: dict[OpSpec, tuple[Compiled, ...]] = {}
        self._queue: deque[Node] = deque()
        self._queued: set[Node] = set()
        self._dead: list[Node] = []
        self._mark: Node | None = None
        self._rule = ""
        self._retyper = Retyper(graph, self.touch)
        self.counts: Counter[str] = Counter()
        self.num_dropped = 0
        self.changed = False

    # -- for rules --------------------------------------------------------------------------

    def builder(self, node: Node) -> Builder:
        """Returns a builder that places nodes before `node`, with its origins."""
        if node.graph is None:
            raise AssertionError(f"{node!r} is erased")
        return Builder(node.graph, node, (*node.loc, f"rule:{self._rule}"))

    def replace(self, node: Node, *values: Value) -> None:
        """Replaces the results of `node` by values of equal meaning and erases it.

        Raises:
            RegraftError: When a value has another element type, or a size known to differ.
        """
        graph = node.graph
        if graph is None:
            raise AssertionError(f"{node!r} is erased")
        fresh: list[Node] = []
        made = node.prev
        while made is not None and made is not self._mark:
            self._touch_new(made)
            fresh.append(made)
            made = made.prev
        if self._observer is not None:
            self._observer.replaced(self._rule, node, values, fresh)
        retyped = [
            new
            for old, new in zip(node.outputs, values, strict=True)
            if self._hand_over(node, old, new)
        ]
        for value in node._inputs:
            if value is not None and value.producer is not None:
                self._dead.append(value.producer)
        graph.replace(node, values, self._rule)
        for value in values:
            if value.producer is not None:
                self.touch(value.producer)
        for value in retyped:
            self._retyper.propagate(value)

    def _hand_over(self, node: Node, old: Value, new: Value) -> bool:
        """Gives `new` what is known of `old`; returns whether users must be inferred anew."""
        for user, _ in old._uses:
            if isinstance(user, Node):
                self.touch(user)
        if new.content is None:
            new.content = old.content
        if old.type is new.type or old.type == new.type:
            return False
        return self._retyper.unify(old, new, f"rule `{self._rule}` at {label(node)}")

    def update(
        self,
        node: Node,
        operands: Mapping[int, Value | None] | None = None,
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        """Changes operands and attributes of a node in place, infers it anew, looks at it again.

        The meaning of its results must be the same as before.

        Args:
            node: The node.
            operands: New operands by slot.
            attrs: New attributes by name.
        """
        if not operands and not attrs:
            raise AssertionError(f"an update of {node!r} names what it changes")
        if self._observer is not None:
            with _changed_copy(node, operands or {}, attrs or {}) as copy:
                self._observer.replaced(self._rule, node, copy.outputs, [copy])
        for idx, value in (operands or {}).items():
            old = node.inputs[idx]
            if old is not None and old.producer is not None:
                self._dead.append(old.producer)
            node.set_operand(idx, value)
        node.attrs.update(attrs or {})
        self._retyper.refresh(node)
        self.touch(node)
        for value in node.outputs:
            for user, _ in value._uses:
                if isinstance(user, Node):
                    self.touch(user)

    def touch(self, node: Node) -> None:
        """Looks at a node again."""
        if node not in self._queued:
            self._queued.add(node)
            self._queue.append(node)

    def _touch_new(self, node: Node) -> None:
        self.touch(node)
        for body in node.bodies:
            for inner in body.walk():
                self.touch(inner)

    # -- the loop ---------------------------------------------------------------------------

    def run(self, nodes: Iterable[Node], max_steps: int | None) -> None:
        """Works the list off; see `rewrite`."""
        queue, queued, table = self._queue, self._queued, self._table
        queue.extend(nodes)
        queued.update(queue)
        limit = max(_STEPS_PER_NODE * len(queue), _MIN_STEPS) if max_steps is None else max_steps
        steps = 0
        recent: deque[str] = deque(maxlen=_RECENT)
        while queue:
            node = queue.popleft()
            queued.discard(node)
            if node.graph is None or is_detached(node.graph):
                continue
            if self._drop_if_dead(node):
                continue
            rules = table.get(node.op)
            if rules is None:
                rules = tuple(rule for rule in self._rules if rule.wants(node.op))
                table[node.op] = rules
            for rule in rules:
                if not self._try(rule, node):
                    continue
                self.changed = True
                steps += 1
                recent.append(rule.name)
                if steps > limit:
                    raise _endless(limit, recent)
                if node.graph is not None:
                    self.touch(node)
                break
        if self._retyper.flush():
            self.changed = True

    def _try(self, rule: Compiled, node: Node) -> bool:
        self._rule = rule.name
        self._mark = node.prev
        explainer = self._explainer
        if explainer is not None and explainer.rule != rule.name:
            explainer = None
        trace = None if explainer is None else Trace()
        outcome = rule.apply_at(node, self, trace)
        if outcome is True:
            self.counts[rule.name] += 1
            if explainer is not None:
                explainer.applied(node)
            if self._dead:
                self._drop_dead()
            return True
        if explainer is not None and trace is not None:
            if isinstance(outcome, Reject):
                explainer.rejected(node, outcome, trace)
            else:
                explainer.missed(node, trace)
        return False

    def _drop_if_dead(self, node: Node) -> bool:
        for value in node.outputs:
            if value._uses:
                return False
        self._dead.append(node)
        self._drop_dead()
        return node.graph is None

    def _drop_dead(self) -> None:
        """Erases the pending nodes that nothing uses, and what only they used."""
        dead = self._dead
        while dead:
            node = dead.pop()
            graph = node.graph
            if graph is None:
                continue
            if any(value._uses for value in node.outputs):
                self.touch(node)  # it lost a use, and rules may ask for single uses
                continue
            if not is_droppable(node) or self._retyper.defines_symbols(node):
                continue
            producers = [v.producer for v in node._inputs if v is not None]
            graph.erase(node)
            self.num_dropped += 1
            self.changed = True
            dead.extend(producer for producer in producers if producer is not None)


@contextmanager
def _changed_copy(
    node: Node, operands: Mapping[int, Value | None], attrs: Mapping[str, Any]
) -> Iterator[Node]:
    """Gives what a change in place makes of a node, beside it, so that an observer sees both."""
    graph = node.graph
    if graph is None:
        raise AssertionError(f"{node!r} is erased")
    copy = graph.create(
        node.op,
        [operands.get(idx, value) for idx, value in enumerate(node.inputs)],
        {**node.attrs, **attrs},
        num_outputs=len(node.outputs),
        bodies=tuple(clone_graph(body) for body in node.bodies),
        before=node,
        loc=node.loc,
        infer=False,
    )
    for old, new in zip(node.outputs, copy.outputs, strict=True):
        new.type, new.content = old.type, old.content
    try:
        yield copy
    finally:
        graph.erase(copy)


def _endless(limit: int, recent: Iterable[str]) -> RegraftError:
    names = ", ".join(f"`{name}` ({n})" for name, n in Counter(recent).most_common(4))
    return RegraftError(
        f"rewriting did not end within {limit} steps; the last {_RECENT} were {names}",
        hint="two rules undo each other, or a rule applies to its own result",
    )
