"""The pass `extract-experts`: one expert per domain of the samples, one router for all layers."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import is_constant
from regraft.ir.errors import UsageError
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, linalg
from regraft.ir.weights import ArrayWeight, Role
from regraft.passes.analysis.blocks import Recognizer
from regraft.passes.analysis.ffn import FfnBlock
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.experts.dense import dense_of, identity_of, refusal
from regraft.passes.experts.divided import Choice, Divided, add_divided, write_divided
from regraft.passes.experts.evidence import hidden_of, rows_of
from regraft.passes.experts.parts import Parts
from regraft.passes.experts.routers import Router, ridge_classifier
from regraft.passes.experts.written import name_of
from regraft.passes.protocol import Context, Contract, Lossy, PassResult, Skip

Array = np.ndarray[Any, Any]

_WHO = "pass `extract-experts`"


@dataclass(frozen=True, slots=True)
class ExtractExperts:
    """Takes an expert per domain out of feed-forward blocks, and one router for all of them.

    ## What it does
    The samples are those of `domains` domains, one after another and equally many of each. Of every
    domain, a block keeps the fraction `keep-ratio` of its hidden channels that is strongest on
    mean. Channels that all domains keep compute every token; the rest of a domain's channels are
    its expert, and experts may have channels in common. One linear router, which reads the first
    value of the model that has the blocks' channels (the embedding), scores the domains of every
    token before the first layer runs; all layers take that token through the same expert.

    ## When it applies
    To blocks of the main graph that `partition-ffn` takes, where tokens have an embedding of as
    many channels. Needs samples.

    ## Example
    ```
    extract-experts{domains=3}         // with --calibrate code.npz, then law.npz, then news.npz
    ```

    ## Exactness
    Lossy. For tokens of a domain that keeps all that they excite, the block itself.

    ## References
    Cai et al., Read-ME: Refactorizing LLMs as Router-Decoupled Mixture of Experts, 2024.

    Args:
        domains: How many domains the samples are of.
        keep_ratio: Fraction of the hidden channels that a domain keeps, the shared ones included.
        only: Blocks to rewrite, by the name of a weight of theirs, or globs; default: all.
    """

    name: ClassVar[str] = "extract-experts"
    contract: ClassVar[Contract] = Lossy("output")

    domains: int = 4
    keep_ratio: float = 0.5
    only: tuple[str, ...] = ()

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Rewrites the blocks.

        Raises:
            UsageError: For options out of range, or samples that are not those of domains.
        """
        self._check(ctx)
        skipped: list[Skip] = []
        blocks: list[FfnBlock] = []
        for block in Recognizer().graph(module.graph).ffn:
            reason = self._reason(block)
            if reason is None:
                blocks.append(block)
            else:
                skipped.append(Skip(name_of(block), reason))
        source = None if not blocks else _embedding(module, blocks)
        if source is None:
            skipped += [
                Skip(name_of(each), "no value before it has its channels") for each in blocks
            ]
            return PassResult(False, {"blocks": 0}, tuple(skipped))
        axes = {source: -1, **{block.up.input: block.up.in_axis for block in blocks}}
        rows, numbers = rows_of(module, axes, ctx, _WHO)
        labels = numbers * self.domains // len(ctx.samples)
        weights, bias, accuracy = ridge_classifier(rows[source], labels, self.domains)
        scores = _write_router(module, source, weights, bias)
        made: dict[tuple[object, ...], tuple[dict[str, str], Divided]] = {}
        for block in blocks:
            key = identity_of(block)
            if key not in made:
                divided = self._divided(block, rows[block.up.input], labels)
                made[key] = (add_divided(module, block, divided), divided)
            names, divided = made[key]
            write_divided(module.graph, block, names, divided, Choice(1), scores)
        drop_dead_code(module)
        return self._result(made, accuracy, skipped)

    def _check(self, ctx: Context) -> None:
        for name, value, least, most in (
            ("domains", self.domains, 2, np.inf), ("keep-ratio", self.keep_ratio, 0, 1),
        ):  # fmt: skip
            if not least <= value <= most:
                raise UsageError(f"{_WHO}, option `{name}`: {value:g} is not in {least} to {most}")
        if not ctx.samples or len(ctx.samples) % self.domains:
            raise UsageError(
                f"{_WHO}: {len(ctx.samples)} samples of {self.domains} domains",
                hint="give the samples of one domain after those of another, equally many of each",
            )

    def _reason(self, block: FfnBlock) -> str | None:
        layers = [layer for layer in (block.up, block.gate, block.down) if layer is not None]
        names = [str(layer.weight.name) for layer in layers]
        if self.only and not any(fnmatch.fnmatchcase(n, g) for n in names for g in self.only):
            return "not named by option"
        return refusal(block)

    def _divided(self, block: FfnBlock, x: Array, labels: Array) -> Divided:
        dense = dense_of(block)
        hidden = np.abs(hidden_of(dense, block.activation, x))
        count = max(1, math.floor(self.keep_ratio * dense.hidden))
        kept = np.zeros((self.domains, dense.hidden), bool)
        for domain in range(self.domains):
            order = np.argsort(-hidden[labels == domain].mean(0), kind="stable")
            kept[domain, order[:count]] = True
        shared: Array = np.all(kept, axis=0)
        own = tuple(np.flatnonzero(each & ~shared) for each in kept)
        if not any(len(each) for each in own):
            # domains that agree leave nothing to route: one channel stays an expert's
            last = np.flatnonzero(shared)[-1:]
            shared[last] = False
            own = (last,) * self.domains
        return Divided(dense, Parts(np.flatnonzero(shared), own), Router())

    def _result(
        self,
        made: dict[tuple[object, ...], tuple[dict[str, str], Divided]],
        accuracy: float,
        skipped: Sequence[Skip],
    ) -> PassResult:
        active = [
            (len(each.parts.shared) + sum(each.parts.widths) / self.domains) / each.dense.hidden
            for _, each in made.values()
        ]
        stats = {
            "blocks": len(made),
            "active-fraction": float(np.mean(active)),
            "router-accuracy": accuracy,
        }
        blocks = [
            {
                "down": names["experts.down"],
                "shared": len(each.parts.shared),
                "widths": list(each.parts.widths),
            }
            for names, each in made.values()
        ]
        return PassResult(True, stats, tuple(skipped), decisions={"blocks": blocks})


def _embedding(module: Module, blocks: Sequence[FfnBlock]) -> Value | None:
    """Returns the first value that has a row of the blocks' channels for each of their tokens."""
    shapes = {block.up.input.shape for block in blocks}
    if len(shapes) > 1 or any(block.up.in_axis != -1 for block in blocks):
        return None
    (shape,) = shapes
    dtype = blocks[0].up.input.dtype
    first = min(block.up.nodes[-1].order for block in blocks)
    for node in module.graph:
        if node.order >= first:
            return None
        for value in node.outputs:
            if value.shape == shape and value.dtype is dtype and not is_constant(value):
                return value
    return None


def _write_router(module: Module, source: Value, weights: Array, bias: Array) -> Value:
    """Returns the scores of the domains, computed as soon as the embedding is there."""
    node = source.producer
    assert node is not None, "an embedding is computed"
    b = Builder(module.graph, _after(module, node), node.loc)
    assert source.dtype is not None, "a value has a type"

    def parameter(name: str, array: Array) -> Value:
        content = np.ascontiguousarray(array, source.dtype.numpy)  # type: ignore[union-attr]
        return b.weight(f"pre_gating.{name}", ArrayWeight(content), Role.PARAM)

    product = b.op(linalg.matmul, source, parameter("router", weights))
    return b.op(arithmetic.add, product, parameter("router_bias", bias))


def _after(module: Module, node: Node) -> Node | None:
    nodes = list(module.graph)
    place = nodes.index(node) + 1
    return nodes[place] if place < len(nodes) else None
