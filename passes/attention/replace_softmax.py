"""The pass `replace-softmax`: other weights of attention than those of a softmax."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from regraft.ir.errors import UsageError
from regraft.ir.graph import Node
from regraft.ir.module import Module
from regraft.ir.ops.attention import attention
from regraft.ir.ops.attention_weights import is_softmax
from regraft.ir.rewrite import Rewriter, rewrite
from regraft.passes.analysis.attention_forms import products_of_three
from regraft.passes.analysis.blocks import graphs_of
from regraft.passes.analysis.dependence import data_values
from regraft.passes.attention.fold_temperature import fold_temperature
from regraft.passes.attention.site import Site
from regraft.passes.attention.unread import unread_softmaxes
from regraft.passes.attention.variants import VARIANTS, Variant
from regraft.passes.fusion.fuse import Fuse
from regraft.passes.fusion.plan import Plan, Raise
from regraft.passes.pipeline import suggest
from regraft.passes.protocol import Context, Contract, Exact, Lossy, PassResult, Skip

_OPTIONS = (
    "alpha", "gamma", "zeta", "power", "offset", "share", "sink", "gain", "cap", "slope", "bias",
    "tau", "beta", "k", "budget", "learned",
)  # fmt: skip


class _ByVariant:
    """The contract: exact where the variant changes nothing with its options."""

    def __get__(self, instance: ReplaceSoftmax | None, owner: type[Any]) -> Contract:
        if instance is None or not instance.is_identity:
            return Lossy("output")
        return Exact()


def _by_variant() -> Any:
    return _ByVariant()  # seen as what it gives: a contract


@dataclass(frozen=True, slots=True)
class ReplaceSoftmax:
    """Gives attention other weights than a softmax of its scores, in every layer or in some.

    ## What it does
    Raises attention to the operator `attention`, whatever the exporter's spelling, numbers the
    layers from 0 in order, and rewrites each by the `variant`: StableMax, clipped softmax, gates,
    softplus attention with re-weighting, alpha-entmax, sinks, normalized queries and keys, soft
    caps, scaled and learned temperatures, top-k, selective and threshold relative attention.
    docs/attention.md lists them with their options. What is learned becomes weights named
    `attention.<layer>.<what>`, which the trainer fits. Masks, padding, windows and groups of heads
    keep their meaning.

    ## When it applies
    To every recognized attention. What cannot be rewritten is reported with the reason: scores
    that heads mix, attention over channels, weights that something else reads, and what a variant
    itself needs (`selective`: a causal mask).

    ## Example
    ```
    %y = attention(%q, %k, %v) {scale = 0.125}
    ```
    with `replace-softmax{variant=clipped,gamma=-0.03}` becomes
    ```
    %y = attention(%q, %k, %v) {scale = 0.125, normalizer = "clipped",
                                normalizer_parameters = [-0.03, 1.0, 0.0]}
    ```

    ## Exactness
    Exact for `two-pass` and at identity parameters: `clipped` with gamma 0 and zeta 1, `gated`
    (begins at the model as it is), `entmax` with alpha 1, `sinks` at -10000 and less, `softcap` 0,
    `scalable` with slope 0 and bias 1, `temperature` 1, `principled` with beta 10. Otherwise lossy,
    to be trained: the pass `recover`, or training of one's own.

    ## References
    docs/attention.md names the paper of every variant.

    Args:
        variant: What replaces the softmax.
        layers: Numbers of the attention layers, from 0; all when empty.
        alpha: `entmax`: 1 is softmax, 2, the most, sparsemax. `clipped`: gamma less alpha / n.
        gamma: `clipped`: what is added after stretching, 0 or less.
        zeta: `clipped`: the upper end of the stretch.
        power: `softplus-sharp`: exponent of the re-weighting.
        offset: `softplus-sharp`: what is taken off n A.
        share: `gated`: the gates' first value, before its inverse is multiplied in.
        sink: `sinks`: the first value of the further score.
        gain: `qk-norm`: the first gain.
        cap: `softcap`: the largest score.
        slope: `scalable`: factor of log n to begin with.
        bias: `scalable`: what is added to it.
        tau: `temperature`: below 1 sharpens.
        beta: `principled`: the first value of beta.
        k: `top-k`: scores that are kept.
        budget: `selective`: keys passed over by more are evicted; 0: none.
        learned: `entmax`: alpha is learned per head.
        fold: `temperature`: divide the weights that make queries instead of the scores.
    """

    name: ClassVar[str] = "replace-softmax"
    contract: ClassVar[Contract] = _by_variant()

    variant: str
    layers: tuple[int, ...] = ()
    alpha: float | None = None
    gamma: float | None = None
    zeta: float | None = None
    power: float | None = None
    offset: float | None = None
    share: float | None = None
    sink: float | None = None
    gain: float | None = None
    cap: float | None = None
    slope: float | None = None
    bias: float | None = None
    tau: float | None = None
    beta: float | None = None
    k: float | None = None
    budget: float | None = None
    learned: bool | None = None
    fold: bool = False

    @property
    def is_identity(self) -> bool:
        """Whether the module computes what it did."""
        variant = VARIANTS.get(self.variant)
        return variant is not None and variant.identity(self._options(variant))

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Raises, then rewrites.

        Raises:
            UsageError: For an unknown variant, an option it does not take, or a layer not there.
        """
        variant = self._variant()
        options = self._options(variant)
        raised = Fuse().run(module, ctx)
        skipped = [skip for skip in raised.skipped if skip.reason.startswith("attention: ")]
        skipped += _without_softmax(module)
        reported = {skip.node for skip in skipped}
        for graph in graphs_of(module.graph):
            skipped += unread_softmaxes(graph, reported)
        plan, folded = Plan(), 0
        nodes = list(_attentions(module))
        self._check_layers(len(nodes))
        for number, node in enumerate(nodes):
            if self.layers and number not in self.layers:
                continue
            reason = _misfit(node, variant)
            if reason:
                skipped.append(Skip(str(node.output.name), f"attention: {reason}"))
            elif self.fold:
                reason = fold_temperature(node, options["tau"])
                folded += not reason
                if reason:
                    skipped.append(Skip(str(node.output.name), f"attention: {reason}"))
            else:
                plan.add(node, "replace-softmax", _rewritten(number, variant, options))
        rewrite(module, plan.rules(), start=plan.in_order(), observer=ctx.observer)
        replaced = len(plan.places) + folded
        stats = {"attention": len(nodes), "replaced": replaced}
        return PassResult(raised.changed or replaced > 0, stats, tuple(skipped))

    def _variant(self) -> Variant:
        variant = VARIANTS.get(self.variant)
        if variant is None:
            raise UsageError(
                f"pass `{self.name}`, option `variant`: `{self.variant}` is not known",
                hint=suggest(self.variant, VARIANTS),
            )
        given = [name for name in _OPTIONS if getattr(self, name) is not None]
        unknown = [name for name in given if name not in variant.options]
        if unknown:
            raise UsageError(
                f"pass `{self.name}`, option `{unknown[0]}`: variant `{variant.name}` has none",
                hint=f"it takes {', '.join(variant.options) or 'no options'}",
            )
        if self.fold and variant.name != "temperature":
            raise UsageError(
                f"pass `{self.name}`, option `fold`: variant `{variant.name}` has none",
                hint="only `temperature` folds into weights",
            )
        options = self._options(variant)
        for name, is_valid, wanted in (
            ("tau", options.get("tau", 1) > 0, "more than 0"),
            ("share", 0 < options.get("share", 0.5) < 1, "between 0 and 1"),
            ("k", options.get("k", 1) >= 1 and options.get("k", 1) % 1 == 0, "a number of keys"),
            ("cap", options.get("cap", 0) >= 0, "0 or more"),
            ("gamma", options.get("gamma", 0) <= 0, "0 or less"),
            ("zeta", options.get("zeta", 1) >= 1, "1 or more"),
            ("power", options.get("power", 1) > 0 or self.power is None, "more than 0"),
            ("budget", options.get("budget", 0) >= 0, "0 or more"),
            # above 2 weights end in a root, and roundings of the threshold are no small errors
            ("alpha", variant.name != "entmax" or 1 <= options["alpha"] <= 2, "between 1 and 2"),
            ("alpha", options.get("alpha", 0) >= 0, "0 or more"),
        ):
            if not is_valid:
                raise UsageError(
                    f"pass `{self.name}`, option `{name}`: {options[name]:g} is not allowed",
                    hint=f"it is {wanted}",
                )
        return variant

    def _options(self, variant: Variant) -> dict[str, float]:
        given = {name: getattr(self, name) for name in variant.options}
        return {
            name: float(default if given[name] is None else given[name])
            for name, default in variant.options.items()
        }

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


def _misfit(node: Node, variant: Variant) -> str:
    q, k, v = node.inputs[:3]
    shapes = [None if x is None else x.shape for x in (q, k, v)]
    if q is None or q.dtype is None or None in shapes:
        return "the sizes of its operands are not known"
    if not isinstance((q.shape or ())[1], int) or not isinstance((q.shape or ())[3], int):
        return "the number of its heads or channels is known at run time only"
    if not is_softmax(node.attrs):
        return "its weights are not those of a softmax"
    return variant.misfit(node)


def _rewritten(number: int, variant: Variant, options: dict[str, float]) -> Raise:
    def apply(node: Node, rw: Rewriter) -> None:
        rw.replace(node, variant.build(Site(node, number, rw.builder(node)), options))

    return apply


def _without_softmax(module: Module) -> Iterator[Skip]:
    """Yields attention that has no softmax of scores to replace."""
    for graph in graphs_of(module.graph):
        for other in products_of_three(graph, data_values(graph)):
            yield Skip(str(other.output.name), "attention: it has no softmax of scores")
