"""The pass `linearize-attention`: softmax attention becomes linear, hybrid, or softmax-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from regraft.ir.builder import Builder
from regraft.ir.errors import UsageError
from regraft.ir.graph import Node
from regraft.ir.module import Module
from regraft.ir.ops.attention import attention
from regraft.ir.ops.attention_weights import is_softmax
from regraft.ir.rewrite import Rewriter, rewrite
from regraft.passes.analysis.blocks import graphs_of
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.fusion.fuse import Fuse
from regraft.passes.fusion.plan import Plan, Raise
from regraft.passes.linearization.heads import linear_in_part
from regraft.passes.linearization.methods import METHODS, Merge, Method, Options
from regraft.passes.linearization.place import Built, Place
from regraft.passes.linearization.stack import By, choose_stack
from regraft.passes.linearization.transfer import Losses, transfer
from regraft.passes.pipeline import suggest
from regraft.passes.protocol import Context, Contract, Lossy, PassResult, Skip


@dataclass(frozen=True, slots=True)
class LinearizeAttention:
    """Puts attention with a state of constant size in place of softmax attention.

    ## What it does
    Raises attention to the operator `attention`, whatever the exporter's spelling, numbers the
    layers from 0 in order, and rewrites each by the `method` (docs/linearization.md lists them).
    `window` keeps a softmax over the last keys beside the linear branch, under one sum
    (`hybrid_attention`). Its `merge` is that of LoLCATs; `lse`, in which the window's share follows
    its scores; or `share`, in which the linear branch says how much the window gets. With `steps`,
    the learned feature maps are fitted to the softmax attention that they replace, every layer fed
    what the teacher has: on results (`loss=output`), on weights (`weights`), or on both (`mixed`),
    before the window is added; or on the results of both branches together (`hybrid`, the recipe of
    LoLCATs). All other weights stay as they are; `recover` goes on.

    ## When it applies
    To every recognized attention over whole sequences. What stays is reported with the reason:
    masks that differ from query to query, windows, sinks, a cache before the first query, and what
    a method itself needs: an order, or all keys at once.

    ## Example
    ```
    %y = attention(%q, %k, %v) {scale = 0.125, causal_offset = 0}
    ```
    with `linearize-attention{method=hedgehog}` becomes
    ```
    %fq = matmul(%q, @attention.0.q_features)
    %fk = matmul(%k, @attention.0.k_features)
    %y = linear_attention(%fq, %fk, %v) {feature_map = "hedgehog", normalizer = "sum"}
    ```

    ## Exactness
    Lossy, to be trained. A window that reaches over the whole sequence is softmax attention.

    ## References
    docs/linearization.md names the paper of every method. Transfer: Zhang et al., LoLCATs, 2024;
    before the window is added: Mitigating the bypass of linear attention in hybrids, 2025
    (arXiv:2510.05901).

    Args:
        method: What replaces the softmax.
        layers: Numbers of the attention layers, from 0; all when empty.
        window: Keys that keep a softmax, the query's own included; 0: none.
        merge: How window and linear branch come under one sum.
        features: Columns of the learned maps; 0: the channels of a head.
        landmarks: Of `soft`; 0: every token is one.
        cache: Bytes that caches and states may have, of those of the softmax's caches; the solver
            chooses what stays a softmax. 0: all become linear.
        tokens: Length of the text that `cache` is for.
        stack: What it chooses: whole layers, or key heads of layers with the queries that read
            them.
        steps: Updates of the feature maps; 0: none.
        rate: The highest learning rate.
        loss: What they are fitted on.
        batches: Batches per update.
    """

    name: ClassVar[str] = "linearize-attention"
    contract: ClassVar[Contract] = Lossy("output")

    method: str = "hedgehog"
    layers: tuple[int, ...] = ()
    window: int = 0
    merge: Merge = "share"
    features: int = 0
    landmarks: int = 0
    cache: float = 0.0
    tokens: int = 4096
    stack: By = "layers"
    steps: int = 0
    rate: float = 1e-2
    loss: Losses = "output"
    batches: int = 1

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Raises, builds every branch beside its attention, fits them, and replaces.

        Raises:
            UsageError: For an unknown method, an option that it does not take, a layer not there,
                or where steps are asked for without data.
        """
        method = self._method()
        raised = Fuse().run(module, ctx)
        skipped = [skip for skip in raised.skipped if skip.reason.startswith("attention: ")]
        nodes = list(_attentions(module))
        self._check_layers(len(nodes))
        places: list[tuple[Place, Built]] = []
        for number, node in enumerate(nodes):
            if self.layers and number not in self.layers:
                continue
            reason = _misfit(node, self.window) or method.misfit(node)
            if reason:
                skipped.append(Skip(str(node.output.name), f"attention: {reason}"))
                continue
            place = Place(node, number, _builder_at(node))
            built = method.build(place, self._options())
            places.append((place, built))
        stats: dict[str, int | float] = {"attention": len(nodes), "linearized": len(places)}
        if self.steps and places:
            stats |= transfer(
                module, ctx, places, steps=self.steps, rate=self.rate, loss=self.loss,
                batches=self.batches,
            )  # fmt: skip
        decisions: dict[str, object] = dict(ctx.replay.get(self.name, {}))
        if self.cache and places and not decisions:
            stack = choose_stack(module, ctx, places, self.cache, self.tokens, by=self.stack)
            decisions = stack.decisions()
            stats |= {"cache-bytes": stack.bytes, "cache-bytes-before": stack.before}
        plan = Plan()
        for place, built in places:
            made = self._chosen(module, place, built, decisions)
            if made is not None:
                plan.add(place.node, "linearize-attention", _replaced_by(made))
        stats["linearized"] = len(plan.places)
        rewrite(module, plan.rules(), start=plan.in_order(), observer=ctx.observer)
        drop_dead_code(module)
        changed = raised.changed or bool(plan.places)
        return PassResult(changed, stats, tuple(skipped), decisions=decisions)

    def _chosen(
        self, module: Module, place: Place, built: Built, decisions: Mapping[str, object]
    ) -> Built | None:
        """Returns what replaces an attention, None where all of it stays."""
        linear, heads = decisions.get("linear"), decisions.get("heads", {})
        if not isinstance(linear, Sequence) or place.number in linear:
            return built
        part = heads.get(str(place.number)) if isinstance(heads, Mapping) else None
        if not part:
            return None
        return linear_in_part(module, place, self._method(), self._options(), tuple(part))

    def _options(self) -> Options:
        return Options(self.features, self.window, self.merge, self.landmarks)

    def _method(self) -> Method:
        method = METHODS.get(self.method)
        if method is None:
            raise UsageError(
                f"pass `{self.name}`, option `method`: `{self.method}` is not known",
                hint=suggest(self.method, METHODS),
            )
        problems = [
            (name, f"{value} is not allowed", f"it is {least} or more")
            for name, value, least in (
                ("window", self.window, 0), ("features", self.features, 0),
                ("landmarks", self.landmarks, 0), ("steps", self.steps, 0),
                ("batches", self.batches, 1), ("cache", self.cache, 0), ("tokens", self.tokens, 1),
            )
            if value < least
        ]  # fmt: skip
        if self.window and not method.has_window:
            having = ", ".join(name for name, each in METHODS.items() if each.has_window)
            problems.append(("window", f"method `{method.name}` has none", f"these have: {having}"))
        if method.name == "window" and not self.window:
            problems.append(("window", "method `window` needs one", "such as `window=64`"))
        if self.loss == "hybrid" and not self.window:
            problems.append(("loss", "`hybrid` needs a `window`", "or `output`, or `weights`"))
        for name, problem, hint in problems[:1]:
            raise UsageError(f"pass `{self.name}`, option `{name}`: {problem}", hint=hint)
        return method

    def _check_layers(self, count: int) -> None:
        unknown = [number for number in self.layers if not 0 <= number < count]
        if unknown:
            raise UsageError(
                f"pass `{self.name}`, option `layers`: no layer {', '.join(map(str, unknown))}",
                hint=f"{count} layers of attention were recognized"
                + (f", 0 to {count - 1}" if count else ""),
            )


def _attentions(module: Module) -> Iterator[Node]:
    """Yields the operators `attention` of a module and its bodies, in order."""
    for graph in graphs_of(module.graph):
        for node in graph:
            if node.op is attention:
                yield node


def _builder_at(node: Node) -> Builder:
    if node.graph is None:
        raise AssertionError("an attention is in a graph")
    return Builder(node.graph, node, node.loc)


def _misfit(node: Node, window: int) -> str:
    """Returns why an attention stays a softmax, or ""."""
    q, k, v = node.inputs[:3]
    shapes = [None if x is None else x.shape for x in (q, k, v)]
    if q is None or q.dtype is None or None in shapes:
        return "the sizes of its operands are not known"
    static = [(shapes[0] or ())[1], (shapes[0] or ())[3], (shapes[2] or ())[3]]
    if not all(isinstance(size, int) for size in static):
        return "the number of its heads or channels is known at run time only"
    if not is_softmax(node.attrs):
        return "its weights are not those of a softmax"
    if node.operand("sinks") is not None:
        return "it has sinks, and a linear sum has no such rest"
    return _mismasked(node) or _misplaced(node, window)


def _misplaced(node: Node, window: int) -> str:
    offset, (left, right) = node.attrs["causal_offset"], node.attrs["window"]
    if node.operand("causal_offset") is not None or offset not in (None, 0):
        return (
            "a cache lies before its first query: linearize the module without a cache, and "
            "give that one states"
        )
    if offset == 0 and left >= 0:
        return "it sees a window already: its memory is constant"
    if offset == 0 and right > 0:
        return "it sees a fixed number of later keys"
    if window and not (offset == 0 and right == 0):
        return "it is not causal, and the window of a hybrid is the last keys"
    return ""


def _mismasked(node: Node) -> str:
    mask, k = node.operand("mask"), node.inputs[1]
    if mask is None:
        return ""
    shape = mask.shape
    if shape is None or k is None or not shape or shape[-1] != (k.shape or ())[2]:
        return "its mask has sizes that are not known"
    if any(size != 1 for size in shape[-3:-1]):
        return "its mask or bias differs from query to query, or from head to head"
    return ""


def _replaced_by(built: Built) -> Raise:
    def apply(node: Node, rw: Rewriter) -> None:
        rw.replace(node, built.out)

    return apply
