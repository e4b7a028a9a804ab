"""The pass `upcycle-ffn`: feed-forward blocks become mixtures of experts."""

from __future__ import annotations

import fnmatch
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from regraft.ir.errors import UsageError
from regraft.ir.graph import Graph, Value
from regraft.ir.module import Module
from regraft.ir.weights import ArrayWeight, Weight
from regraft.passes.analysis.blocks import Recognizer, graphs_of
from regraft.passes.analysis.ffn import FfnBlock
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.experts.dense import identity_of, refusal
from regraft.passes.experts.evidence import gather_rows
from regraft.passes.experts.made import adapters, router_of
from regraft.passes.experts.routers import clustered_rows
from regraft.passes.experts.streamed import Recipe, streamed
from regraft.passes.experts.written import (
    Routing,
    add_weights,
    name_of,
    write_adapters,
    write_experts,
)
from regraft.passes.protocol import Context, Contract, Exact, Lossy, PassResult, Skip

Array = np.ndarray[Any, Any]

_WHO = "pass `upcycle-ffn`"


class _ByOptions:
    """The contract: exact where the options keep what the blocks compute."""

    def __get__(self, instance: UpcycleFfn | None, owner: type[Any]) -> Contract:
        if instance is None or not instance.is_identity:
            return Lossy("output")
        return Exact()


def _by_options() -> Any:
    return _ByOptions()  # seen as what it gives: a contract


@dataclass(frozen=True, slots=True)
class UpcycleFfn:
    """Makes mixtures of experts of feed-forward blocks, to be trained on from where they are.

    ## What it does
    Every block becomes one operator `moe` whose experts begin as copies of it, with a new router.
    `copy` leaves them so. `drop` draws a part of every expert's hidden channels anew, with the mean
    and deviation of what they replace; `noise` adds noise to them. `virtual-groups` cuts each copy
    into `groups` narrow experts; `top-k` then chooses whole copies at first. Blocks are recognized
    by what they compute: gated and plain, with and without biases, matrix products, `gemm` and
    convolutions of window 1. Blocks that share their weights share their experts. docs/moe.md has
    the formulas.

    ## When it applies
    To recognized blocks whose activation the operator has, with one number type throughout, and
    nothing but movement of data between the layers. Others are reported with the reason.

    ## Example
    ```
    %h = gelu(matmul(%x, %up))
    %y = matmul(%h, %down)
    ```
    becomes
    ```
    %r = matmul(%x, %router)                // f32[768, 8]
    %y = moe(%x, %r, %experts.up, %experts.down) {top_k = 2, renormalize = true,
                                                  activation = "gelu"}
    ```

    ## Exactness
    Exact for `adapter` and `lora`; for `copy` and `virtual-groups`, and for `drop` and `noise` with
    `ratio=0`, where the weights of the chosen experts sum to 1 (`renormalize`, or
    `scoring=topk_softmax`) or the router is zero. Lossy otherwise. A router that is random and not
    renormalized scales every result: refused without `lossy`.

    ## References
    Komatsuzaki et al., Sparse Upcycling, 2023; He et al., Upcycling Large Language Models into
    Mixture of Experts, 2024 (`virtual-groups`); Nakamura et al., Drop-Upcycling, 2025 (`drop`);
    Wu et al., Parameter-Efficient Sparsity Crafting, 2024 (`adapter`); Dou et al., LoRAMoE, 2024
    (`lora`); Liu and Luo, AdaMoLE, 2024 (`select=adaptive`).

    Args:
        experts: How many.
        top_k: How many of them compute a token.
        select: `top_k`, or `adaptive`, of `adapter` and `lora`: those whose probability reaches a
            threshold that a layer of its own finds for every token, at most 1 / `experts`.
        method: What they begin as.
        rank: `adapter`, `lora`: hidden channels of an expert.
        groups: `virtual-groups`: narrow experts that make a copy.
        ratio: `drop`, `noise`: fraction of the hidden channels that changes.
        independent: `drop`, `noise`: channels are chosen matrix by matrix.
        noise: `noise`: its deviation.
        router: What its weights begin as; `centroid`: centres of what the block reads on samples,
            so that experts get like tokens from the first step, and equally many.
        router_std: Deviation of a random router.
        scoring: How scores become weights.
        renormalize: Divide weights by their sum.
        capacity: Tokens that an expert takes, times their number * top-k / experts; 0: all that
            choose it. Those beyond have no result, as in Switch Transformers.
        lossy: Allow a start that is not what the model was.
        only: Blocks to rewrite, by the name of a weight of theirs, or globs; default: all.
        keep: Blocks to leave alone.
        every: Rewrite every n-th block, beginning with the n-th.
    """

    name: ClassVar[str] = "upcycle-ffn"
    contract: ClassVar[Contract] = _by_options()

    experts: int = 8
    top_k: int = 2
    select: Literal["top_k", "adaptive"] = "top_k"
    method: Literal["copy", "drop", "noise", "virtual-groups", "adapter", "lora"] = "copy"
    rank: int = 64
    groups: int = 2
    ratio: float = 0.5
    independent: bool = False
    noise: float = 0.02
    router: Literal["random", "zero", "centroid"] = "random"
    router_std: float = 0.02
    scoring: Literal["softmax", "topk_softmax", "sigmoid"] = "softmax"
    renormalize: bool = True
    capacity: float = 0.0
    lossy: bool = False
    only: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    every: int = 1

    @property
    def is_identity(self) -> bool:
        """Whether the module computes what it did."""
        changes = self.method in ("drop", "noise") and self.ratio > 0
        keeps = self._adds or self._sums_to_one or self.router == "zero"
        return keeps and not changes and not self.capacity

    @property
    def _adds(self) -> bool:
        return self.method in ("adapter", "lora")

    @property
    def _is_adaptive(self) -> bool:
        return self.select == "adaptive"

    @property
    def _sums_to_one(self) -> bool:
        return self.renormalize or self.scoring == "topk_softmax"

    @property
    def _groups(self) -> int:
        return self.groups if self.method == "virtual-groups" else 1

    @property
    def _total(self) -> float:
        """Sum of the weights of the chosen; of a random router that is not renormalized, about."""
        if self._sums_to_one:
            return 1.0
        return self.top_k * (0.5 if self.scoring == "sigmoid" else 1 / self.experts)

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Rewrites the blocks of the graph and of its bodies.

        Raises:
            UsageError: For options out of range, or that cannot begin as the model was.
        """
        self._check()
        recognizer = Recognizer()
        found: list[tuple[Graph, FfnBlock]] = []
        skipped: list[Skip] = []
        for graph in graphs_of(module.graph):
            for block in recognizer.graph(graph).ffn:
                reason = self._reason(block)
                if reason is None and self.router == "centroid" and graph is not module.graph:
                    reason = "within a body, where nothing is measured"
                if reason is None:
                    found.append((graph, block))
                else:
                    skipped.append(Skip(name_of(block), reason))
        kept = [] if self.every == 1 else [
            Skip(name_of(block), f"one block in {self.every} is rewritten")
            for idx, (_, block) in enumerate(found) if (idx + 1) % self.every
        ]  # fmt: skip
        found = found[self.every - 1 :: self.every]
        rows = self._rows([block for _, block in found], module, ctx)
        tied: dict[tuple[object, ...], dict[str, str]] = {}
        before = sum(weight.nbytes for weight in map(module.weights.__getitem__, module.weights))
        for graph, block in found:
            key = identity_of(block)
            if key not in tied:
                experts, router, bias = self._made(block, ctx.seed, rows.get(block.up.input))
                tied[key] = add_weights(
                    module, block, experts, router, bias, is_adaptive=self._is_adaptive
                )
            routing = self._routing(block)
            if self._adds:
                of_input = self.method == "lora"
                write_adapters(graph, block, tied[key], routing, of_input=of_input)
            else:
                write_experts(graph, block, tied[key], routing)
        if found:
            drop_dead_code(module)
        after = sum(weight.nbytes for weight in map(module.weights.__getitem__, module.weights))
        stats = {"blocks": len(found), "weight-bytes-before": before, "weight-bytes": after}
        return PassResult(
            bool(found), stats, (*skipped, *kept),
            decisions={"seed": ctx.seed, "blocks": [each["down"] for each in tied.values()]},
        )  # fmt: skip

    def _check(self) -> None:
        groups = self._groups
        for name, value, least, most in (
            ("experts", self.experts, 1, np.inf), ("top-k", self.top_k, 1, self.experts),
            ("groups", groups, 1, self.experts), ("ratio", self.ratio, 0, 1),
            ("every", self.every, 1, np.inf), ("noise", self.noise, 0, np.inf),
            ("rank", self.rank, 1, np.inf), ("capacity", self.capacity, 0, np.inf),
            ("router-std", self.router_std, 0, np.inf),
        ):  # fmt: skip
            if not least <= value <= most:
                raise UsageError(f"{_WHO}, option `{name}`: {value:g} is not in {least} to {most}")
        if self._is_adaptive and not (self._adds and self.scoring == "softmax" and self.renormalize
                                      and not self.capacity):  # fmt: skip
            raise UsageError(
                f"{_WHO}, option `select`: `adaptive` weighs by what probabilities have beyond a "
                "threshold",
                hint="it goes with `method=lora` or `adapter`, and with the default of `scoring`, "
                "`renormalize` and `capacity`",
            )
        for name, value in (("experts", self.experts), ("top-k", self.top_k)):
            if value % groups:
                raise UsageError(
                    f"{_WHO}, option `{name}`: {value} is no multiple of {groups} groups",
                    hint="the narrow experts of a copy are chosen together",
                )
        if self._adds or self._sums_to_one or self.router == "zero" or self.lossy:
            return
        why = (
            "the one chosen expert is multiplied by its probability"
            if self.top_k == 1
            else "the weights of the chosen experts do not sum to 1"
        )
        raise UsageError(
            f"{_WHO}: {why}, so that no gain makes the start equal to the model",
            hint="set `renormalize=true`, or `router=zero`, or allow it: `lossy=true`",
        )

    def _reason(self, block: FfnBlock) -> str | None:
        """Returns why a block is left alone, None where it is not."""
        layers = [layer for layer in (block.up, block.gate, block.down) if layer is not None]
        names = [str(layer.weight.name) for layer in layers]

        def matches(globs: tuple[str, ...]) -> bool:
            return any(fnmatch.fnmatchcase(name, glob) for name in names for glob in globs)

        if matches(self.keep):
            return "kept by option"
        if self.only and not matches(self.only):
            return "not named by option"
        reason = refusal(block)
        if reason is None and isinstance(block.hidden, int) and block.hidden % self._groups:
            return f"{block.hidden} hidden channels are no multiple of {self._groups} groups"
        return reason

    def _rows(self, blocks: Sequence[FfnBlock], module: Module, ctx: Context) -> dict[Value, Array]:
        """Returns what blocks read on samples, where the router is made of it."""
        if self.router != "centroid" or not blocks:
            return {}
        return gather_rows(module, blocks, ctx, _WHO)[0]

    def _made(
        self, block: FfnBlock, seed: int, x: Array | None
    ) -> tuple[Mapping[str, Weight], Array, Array | None]:
        """Returns a block's experts, its router f64[D, E] and bias; the same for the same seed."""
        channels = block.up.in_size
        assert isinstance(channels, int), "refused otherwise"
        parts = (seed, zlib.crc32(str(block.down.weight.name).encode()))
        bias = None
        if x is None:
            deviation = 0.0 if self.router == "zero" else self.router_std
            router = router_of(channels, self.experts, self._groups, deviation, parts)
        else:
            rng = np.random.default_rng(parts)
            rows, offsets = clustered_rows(x, self.experts // self._groups, rng)
            router = np.repeat(rows, self._groups, axis=0).T
            bias = np.repeat(offsets, self._groups)
        return self._experts(block, channels, parts), router, bias

    def _experts(
        self, block: FfnBlock, channels: int, parts: tuple[int, ...]
    ) -> Mapping[str, Weight]:
        if self._adds:
            given, dtype = block.down.out_size, block.up.weight.dtype
            assert isinstance(given, int), "refused otherwise"
            assert dtype is not None, "a constant has a type"
            read = channels if self.method == "lora" else given
            made = adapters(read, given, self.experts, self.rank, parts, dtype.numpy)
            return {name: ArrayWeight(array) for name, array in made.weights.items()}
        return streamed(block, self._recipe(parts))

    def _recipe(self, parts: tuple[int, ...]) -> Recipe:
        return Recipe(
            self.experts, self._groups, self.method, self.ratio, self.noise, self.independent,
            parts, self._groups / self._total, 1 / self._total,
        )  # fmt: skip

    def _routing(self, block: FfnBlock) -> Routing:
        added = {"adapter": "gelu", "lora": "identity"}
        activation = added.get(self.method, block.activation)
        return Routing(
            self.top_k, self.scoring, self.renormalize, activation, self.capacity, self._is_adaptive
        )
