"""The pass `partition-ffn`: hidden channels of feed-forward blocks divided among experts."""

from __future__ import annotations

import fnmatch
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from regraft.ir.errors import UsageError
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.passes.analysis.blocks import Recognizer, graphs_of
from regraft.passes.analysis.ffn import FfnBlock
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.experts.dense import Dense, dense_of, identity_of, refusal
from regraft.passes.experts.divided import Choice, Divided, add_divided, write_divided
from regraft.passes.experts.evidence import Evidence, gather_rows, hidden_of, responses
from regraft.passes.experts.importance import gradient_importance
from regraft.passes.experts.parts import (
    Parts,
    drawn,
    equal_sizes,
    grouped,
    ranked,
    rising_sizes,
    strongest,
    unit_rows,
)
from regraft.passes.experts.routers import (
    Router,
    centroid_router,
    competition_router,
    mean_router,
    random_router,
    reconstruction_error,
    representative_router,
    winners,
    zero_router,
)
from regraft.passes.experts.written import name_of
from regraft.passes.protocol import Context, Contract, Exact, Lossy, PassResult, Skip

Array = np.ndarray[Any, Any]

_WHO = "pass `partition-ffn`"
_MEASURED_METHODS = frozenset({"coactivation", "rate"})
_MEASURED_ROUTERS = frozenset({"centroid", "competition", "representative"})


class _ByOptions:
    """The contract: exact where every expert computes every token."""

    def __get__(self, instance: PartitionFfn | None, owner: type[Any]) -> Contract:
        if instance is None or not instance.is_identity:
            return Lossy("output")
        return Exact()


def _by_options() -> Any:
    return _ByOptions()  # seen as what it gives: a contract


@dataclass(frozen=True, slots=True)
class PartitionFfn:
    """Divides the hidden channels of feed-forward blocks among experts, some of which compute.

    ## What it does
    A block of F hidden channels becomes `experts` parts. The first `shared` of them compute every
    token; of the others a router chooses `top-k`, each with weight 1. The parts together are the
    block. `method` says who belongs together: `random`; `cluster` (balanced k-means on the rows of
    the first layer); `coactivation` (channels that are strong on the same tokens); `rate` (the
    same, shared are those that are strong most often); `gradient` (shared are those of the largest
    first-order effect on the loss, the others dealt out evenly). `compensate` adds what an expert
    gives on mean where it is not chosen. docs/moe.md has the formulas.

    ## When it applies
    To recognized blocks whose activation the operator has, with one number type throughout, and
    nothing but movement of data between the layers. Others are reported with the reason.

    ## Example
    ```
    %h = gelu(matmul(%x, %up))              // f32[768, 3072]
    %y = matmul(%h, %down)
    ```
    with `partition-ffn{experts=8,shared=2,top-k=4}` becomes
    ```
    %s = matmul(gelu(matmul(%x, %shared.up)), %shared.down)        // f32[768, 768]
    %r = matmul(%x, %router.rows)                                  // f32[768, 6]
    %m = moe(%x, %r, %experts.up, %experts.down, …, %gain) {top_k = 4, activation = "gelu"}
    %y = add(%s, %m)
    ```

    ## Exactness
    Exact where all experts are chosen (`top-k=0`). Lossy otherwise.

    ## References
    Zhang et al., MoEfication, 2022 (`cluster`, `coactivation`); Qu et al., LLaMA-MoE v2, 2024
    (`random`, `gradient`, `rescale`, router `centroid`); Pei et al., CMoE, 2025 (`rate`, router
    `representative`); Wang et al., HMoE, 2024 (`sizes=rising`); Liu et al., A Unified View of
    Sparse Feed-Forward Network, 2023 (router `mean`); Pham et al., CompeteSMoE, 2024 (router
    `competition`); Yang et al., Sparser Selection, 2024 (`select=top_p`).

    Args:
        experts: Parts of a block, the shared ones included.
        shared: How many of them compute every token.
        top_k: How many of the others do; 0: all.
        method: Which channels make a part.
        sizes: `rising`: the last expert is three times as wide as the first.
        router: What scores the experts; `auto` is `competition` with samples, else `mean`.
        router_std: Deviation of a random router.
        compensate: Whether experts that are not chosen add what they give on mean.
        rescale: Whether results of experts are multiplied by their number over `top-k`.
        strong: `coactivation`, `rate`: fraction of the channels that counts as strong on a token.
        select: `top_p` chooses experts until their probabilities sum to `threshold`; `threshold`
            those of at least this probability; both at most `top-k`.
        threshold: Of `select`.
        only: Blocks to rewrite, by the name of a weight of theirs, or globs; default: all.
        keep: Blocks to leave alone.
    """

    name: ClassVar[str] = "partition-ffn"
    contract: ClassVar[Contract] = _by_options()

    experts: int = 8
    shared: int = 0
    top_k: int = 0
    method: Literal["random", "cluster", "coactivation", "rate", "gradient"] = "cluster"
    sizes: Literal["equal", "rising"] = "equal"
    router: Literal[
        "auto", "zero", "random", "mean", "centroid", "competition", "representative"
    ] = "auto"
    router_std: float = 0.02
    compensate: bool = False
    rescale: bool = False
    strong: float = 0.25
    select: Literal["top_k", "top_p", "threshold"] = "top_k"
    threshold: float = 0.0
    only: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()

    @property
    def _routed(self) -> int:
        return self.experts - self.shared

    @property
    def _top_k(self) -> int:
        return self.top_k or self._routed

    @property
    def is_identity(self) -> bool:
        """Whether the module computes what it did."""
        return self._top_k == self._routed and self.select == "top_k"

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Rewrites the blocks of the graph and of its bodies.

        Raises:
            UsageError: For options out of range, or without the samples that they need.
        """
        self._check()
        router = self._router_kind(ctx)
        measured = (
            self.method in _MEASURED_METHODS or router in _MEASURED_ROUTERS or self.compensate
        )
        recognizer = Recognizer()
        found: list[tuple[Graph, FfnBlock]] = []
        skipped: list[Skip] = []
        for graph in graphs_of(module.graph):
            for block in recognizer.graph(graph).ffn:
                reason = self._reason(block)
                if (
                    reason is None
                    and graph is not module.graph
                    and (measured or self.method == "gradient")
                ):
                    reason = "within a body, where nothing is measured"
                if reason is None:
                    found.append((graph, block))
                else:
                    skipped.append(Skip(name_of(block), reason))
        made = self._made([block for _, block in found], module, ctx, router, measured)
        tied: dict[tuple[object, ...], dict[str, str]] = {}
        choice = Choice(self._top_k, self.select, self.threshold)
        for graph, block in found:
            key = identity_of(block)
            if key not in tied:
                tied[key] = add_divided(module, block, made[key].divided)
            write_divided(graph, block, tied[key], made[key].divided, choice)
        if found:
            drop_dead_code(module)
        return PassResult(
            bool(found), self._stats(len(found), list(made.values())), tuple(skipped),
            decisions={"seed": ctx.seed, "router": router, "blocks": [
                {"down": names["experts.down"], **made[key].describe()}
                for key, names in tied.items()
            ]},
        )  # fmt: skip

    def _router_kind(self, ctx: Context) -> str:
        if self.router != "auto":
            return self.router
        return "competition" if ctx.samples and ctx.activations is not None else "mean"

    def _check(self) -> None:
        for name, value, least, most in (
            ("experts", self.experts, 1, np.inf), ("shared", self.shared, 0, self.experts - 1),
            ("top-k", self.top_k, 0, self._routed), ("strong", self.strong, 0, 1),
            ("router-std", self.router_std, 0, np.inf),
            ("threshold", self.threshold, 0, 1),
        ):  # fmt: skip
            if not least <= value <= most:
                raise UsageError(f"{_WHO}, option `{name}`: {value:g} is not in {least} to {most}")
        if (self.select == "top_k") != (self.threshold == 0):
            raise UsageError(
                f"{_WHO}, option `threshold`: {self.threshold:g} with `select={self.select}`",
                hint="`select=top_p` and `select=threshold` need one, `top_k` takes none",
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
        if reason is None and isinstance(block.hidden, int) and block.hidden < 2 * self.experts:
            return f"{block.hidden} hidden channels are too few for {self.experts} parts"
        return reason

    def _made(
        self, blocks: Sequence[FfnBlock], module: Module, ctx: Context, router: str, measured: bool
    ) -> dict[tuple[object, ...], _Made]:
        """Returns what becomes of every block, by its identity."""
        first = {identity_of(block): block for block in reversed(blocks)}
        unique = list(reversed(first.items()))
        rows: dict[Any, Array] = {}
        numbers = np.zeros(0, np.int64)
        if measured and blocks:
            rows, numbers = gather_rows(module, blocks, ctx, _WHO)
        weights: list[Array | None] = [None] * len(unique)
        if self.method == "gradient" and blocks:
            weights = list(gradient_importance(module, [b for _, b in unique], ctx, _WHO))
        made = {}
        for (key, block), importance in zip(unique, weights, strict=True):
            dense, evidence = dense_of(block), None
            if measured:
                x = rows[block.up.input]
                evidence = Evidence(x, hidden_of(dense, block.activation, x), numbers)
            seed = [ctx.seed, zlib.crc32(str(block.down.weight.name).encode())]
            made[key] = self._one(dense, evidence, importance, router, np.random.default_rng(seed))
        return made

    def _one(
        self,
        dense: Dense,
        evidence: Evidence | None,
        importance: Array | None,
        kind: str,
        rng: np.random.Generator,
    ) -> _Made:
        parts, features = self._parts(dense, evidence, importance, rng)
        router = self._router(kind, parts, features, dense, evidence, rng)
        means, error = None, None
        if evidence is not None:
            error = self._error(parts, router, dense, evidence)
            if self.compensate:
                mean = evidence.hidden.mean(0, dtype=np.float64)
                means = np.stack([
                    dense.down[:, own].astype(np.float64) @ mean[own] for own in parts.experts
                ])  # fmt: skip
        scale = self._routed / self._top_k if self.rescale else 1.0
        return _Made(Divided(dense, parts, router, means, scale), error)

    def _parts(
        self,
        dense: Dense,
        evidence: Evidence | None,
        importance: Array | None,
        rng: np.random.Generator,
    ) -> tuple[Parts, Array]:
        """Returns who has which channels, and what channels were compared by, f[F, K]."""
        whole = equal_sizes(dense.hidden, self.experts)
        shared = sum(whole[: self.shared])
        rest = dense.hidden - shared
        sizes = (equal_sizes if self.sizes == "equal" else rising_sizes)(rest, self._routed)
        keys = unit_rows(dense.up if dense.gate is None else dense.gate)
        if self.method == "random":
            return drawn(dense.hidden, shared, sizes, rng), keys
        if self.method == "gradient":
            assert importance is not None, "measured before"
            return ranked(importance, shared, sizes), keys
        if self.method == "cluster":
            # without samples, the channels that can do most are shared
            size = np.linalg.norm(keys, axis=1) * np.linalg.norm(
                dense.down.astype(np.float64), axis=0
            )
            return grouped(keys, size if shared else None, shared, sizes, rng), keys
        assert evidence is not None, "measured before"
        columns = strongest(evidence.hidden, self.strong).T.astype(np.float32)
        rate = columns.mean(1) if self.method == "rate" or shared else None
        features = columns if self.method == "rate" else unit_rows(columns)
        rounds = 1 if self.method == "rate" else 20
        return grouped(features, rate, shared, sizes, rng, rounds), features

    def _router(
        self,
        kind: str,
        parts: Parts,
        features: Array,
        dense: Dense,
        evidence: Evidence | None,
        rng: np.random.Generator,
    ) -> Router:
        if kind == "zero":
            return zero_router(parts, dense)
        if kind == "random":
            return random_router(parts, dense, self.router_std, rng)
        if kind == "mean":
            return mean_router(parts, dense)
        assert evidence is not None, "measured before"
        if kind == "centroid":
            return centroid_router(parts, dense, evidence, rng)
        if kind == "competition":
            return competition_router(parts, dense, evidence, self._top_k, centred=self.compensate)
        return representative_router(
            parts, features, dense, evidence, self._top_k, centred=self.compensate
        )

    def _error(
        self, parts: Parts, router: Router, dense: Dense, evidence: Evidence
    ) -> dict[str, float]:
        """Returns what the best choice of experts, and the router's, lose of the block's result."""
        hidden = evidence.hidden - evidence.hidden.mean(0) if self.compensate else evidence.hidden
        best = winners(responses(hidden, dense.down, parts.experts), self._top_k)
        if router.channels is not None:
            scores = np.abs(evidence.hidden[:, router.channels])
        else:
            assert router.rows is not None, "a router has rows or channels"
            scores = evidence.x @ router.rows.T + (0 if router.bias is None else router.bias)
        return {
            name: reconstruction_error(
                evidence.hidden, dense.down, parts.experts, taken, centred=self.compensate
            )
            for name, taken in (("oracle", best), ("router", winners(scores, self._top_k)))
        }

    def _stats(self, blocks: int, made: Sequence[_Made]) -> dict[str, int | float]:
        active = (self.shared + self._top_k) / self.experts
        stats: dict[str, int | float] = {"blocks": blocks, "active-fraction": active}
        for name in ("oracle", "router"):
            errors = [each.error[name] for each in made if each.error is not None]
            if errors:
                stats[f"error-of-{name}"] = float(np.mean(errors))
        return stats


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """What becomes of a block.

    Args:
        divided: Its parts.
        error: What choices lose of its result on the samples, by who chooses; None: not measured.
    """

    divided: Divided
    error: dict[str, float] | None

    def describe(self) -> dict[str, Any]:
        """Returns figures as JSON data."""
        router = self.divided.router
        return {
            "widths": list(self.divided.parts.widths),
            "shared": len(self.divided.parts.shared),
            **({} if router.agreement is None else {"agreement": round(router.agreement, 4)}),
            **({} if self.error is None else {k: round(v, 6) for k, v in self.error.items()}),
        }
