"""The pass `legalize`: lowers canonical operators to what a target runs fastest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from regraft.ir.errors import UsageError
from regraft.ir.module import Module
from regraft.ir.rewrite import RuleSet, rewrite
from regraft.passes.cleanup.canonicalize import Canonicalize
from regraft.passes.cleanup.stops import without_stops
from regraft.passes.protocol import Context, Contract, Exact, PassResult, Skip


class Legalization(Protocol):
    """One run over one module."""

    @property
    def rules(self) -> RuleSet:
        """The rules that take the chosen forms."""

    def decisions(self) -> Mapping[str, Any]:
        """Returns what was chosen, after the rules ran; `forms` holds the form by place."""

    def skips(self) -> Sequence[tuple[str, str]]:
        """Returns (place, reason) of what was left as it is."""


class Legalizer(Protocol):
    """What a backend offers for one target."""

    def start(
        self,
        module: Module,
        dims: Mapping[str, int],
        opset: int | None,
        decided: Mapping[str, str],
    ) -> Legalization:
        """Begins a run.

        Args:
            module: The module, which is rewritten afterwards.
            dims: Sizes expected at run time, by symbol.
            opset: Forms that need a higher ONNX opset are not taken; None for what the target
                prefers.
            decided: Forms by place that were decided before; they win over costs.
        """


@dataclass(frozen=True, slots=True)
class Legalize:
    """Gives every operator the form that is fastest on the target.

    ## What it does
    At each place where the target offers several forms (attention written out, ONNX Attention-23,
    ONNX Runtime's own kernels; …), takes the one that a measured cost table says is fastest. A form
    that gains less than 3 %, or loses at some size the place can have, is not taken. For the target
    `onnx`, operators that the file's opset lacks are written as their bodies, and what several of
    them compute alike is merged. The module is then of that target's level: loading its file raises
    it again.

    ## When it applies
    Last, for targets with a legalization. Sizes that nothing fixes are taken from `--dims`, else a
    form has to win over typical sizes.

    ## Example
    ```
    %y = attention(%q, %k, %v) {scale = 0.125}
    // ort-cpu: %y = ort.flat_attention(%q, %k, %v) {heads = 12, kv_heads = 12, scale = 0.125}
    ```

    ## Exactness
    Exact in real arithmetic.

    ## References
    `regraft tune` measures the table.

    Args:
        target: The target, by default the conversion's.
        opset: Highest ONNX opset that forms may need; by default the newest that `ort-cpu` loads,
            and for `onnx` the opset that the file will have.
    """

    name: ClassVar[str] = "legalize"
    contract: ClassVar[Contract] = Exact()
    lowers: ClassVar[bool] = True

    target: str = ""
    opset: int | None = None

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Rewrites every place, then cleans up what became plain.

        Raises:
            UsageError: When no legalizer is known for the target.
        """
        target = self.target or ctx.target
        legalizer = ctx.legalizers.get(target)
        if legalizer is None:
            known = ", ".join(ctx.legalizers) or "none is loaded"
            raise UsageError(f"target `{target}` has no legalization", hint=f"targets: {known}")
        decided = ctx.replay.get(self.name, {}).get("forms", {})
        run = legalizer.start(module, ctx.dims, self.opset, decided)
        stats = rewrite(module, run.rules, observer=ctx.observer)
        counts: dict[str, int | float] = dict(sorted(stats.counts.items()))
        store = module.weights
        if without_stops(module) or stats.counts or store.trainable:
            store.trainable = False  # a target's graph is for inference
            cleaned = Canonicalize().run(module, ctx)
            counts["cleanup"] = int(sum(cleaned.stats.values()))
        module.level = target
        skipped = tuple(Skip(place, reason) for place, reason in run.skips())
        return PassResult(True, counts, skipped, run.decisions())
