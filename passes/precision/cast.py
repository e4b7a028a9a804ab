"""The pass `cast`: f32 to f16 or bf16, where the numbers allow it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from regraft.ir.constants import opaque
from regraft.ir.graph import Node
from regraft.ir.module import Module
from regraft.ir.types import DType
from regraft.passes.check.runners import EvalRunner, accepts, unevaluable
from regraft.passes.check.samples import generate_samples
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.precision.lower import Lowering
from regraft.passes.precision.plan import Plan, make_plan
from regraft.passes.precision.ranges import Ranges
from regraft.passes.protocol import Context, Contract, PassResult, Rounded, Skip

DTYPES = {"fp16": DType.F16, "bf16": DType.BF16}

_MAX_SAMPLES = 4
"""Samples of the range check; each costs one run in the numpy evaluator."""


class _ByDtype:
    """The contract: rounding at the type that the pass was given."""

    def __get__(self, instance: Cast | None, owner: type[Any]) -> Rounded:
        return Rounded(None if instance is None else DTYPES[instance.dtype])


def _by_dtype() -> Any:
    return _ByDtype()  # seen as what it gives: a contract


@dataclass(frozen=True, slots=True)
class Cast:
    """Computes in f16 or bf16 and stores weights in it, where the numbers allow it.

    ## What it does
    Every f32 node goes to half precision, except where its kind or its numbers speak against it:
    softmax, statistics, sums over long axes, powers and exponentials, rounding and top-k, float
    arithmetic on sizes, quantized operators. The module is run on samples: a value that gets
    beyond half of the type's largest number, or stays below its smallest normal number, keeps its
    node in f32. Weights become derived weights; one of a node that stays in f32 is stored in half
    precision all the same, unless it is small, out of range, or kept by option. Conversions stand
    only where two types meet, each value converted once.

    ## When it applies
    To modules with f32 values, bodies of control flow included, whose inputs and outputs keep
    their types. f64, integers and quantized weights are left alone.

    ## Example
    ```
    %h = matmul(%x, %w)                     // f32[B, 512]
    %p = softmax(%h)
    ```
    becomes, with `%w` stored in f16:
    ```
    %1 = cast(%x) {to = f16}
    %h = matmul(%1, %w)                     // f16[B, 512]
    %2 = cast(%h) {to = f32}
    %p = softmax(%2)
    ```

    ## Exactness
    Outputs move as far as rounding every value to the type moves them: the noise floor is measured
    on the source, each value disturbed at random by at most half a step of the type, and four
    times that is allowed.

    ## References
    Micikevicius et al., Mixed Precision Training, 2018. Parker, Monte Carlo Arithmetic, 1997.

    Args:
        dtype: `fp16` or `bf16`.
        keep: What stays in f32: operator names, value names, `re:` patterns of value names.
        io: `keep` leaves the types of inputs and outputs, `cast` changes those in range too.
        range_check: Run the module on samples to find values out of range.
    """

    name: ClassVar[str] = "cast"
    contract: ClassVar[Contract] = _by_dtype()

    dtype: Literal["fp16", "bf16"]
    keep: tuple[str, ...] = ()
    io: Literal["keep", "cast"] = "keep"
    range_check: bool = True

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Checks ranges, plans, lowers."""
        target = DTYPES[self.dtype]
        ranges = Ranges(target)
        recorded = ctx.replay.get(self.name, {})
        notes: list[Skip] = []
        if self.range_check and "kept" not in recorded:
            notes += self._observe(module, ranges, ctx)
        ranges.read_constants(module)
        plan = make_plan(
            module,
            ranges,
            self.keep,
            casts_interface=self.io == "cast",
            kept_by_name=frozenset(recorded.get("kept", ())),
        )
        by_range = [node.outputs[0].name for node, why in plan.kept.items() if _is_by_numbers(why)]
        lowering = Lowering(module, plan, target)
        lowering.run()
        drop_dead_code(module)
        stats = {
            "lowered": len(plan.low),
            "kept": len(plan.kept),
            "kept-by-range": len(by_range),
            "weights": len(plan.weights),
            "conversions": lowering.num_casts,
            "samples": ranges.num_samples,
        }
        changed = bool(plan.low or plan.weights or plan.interface or lowering.num_casts)
        # a place without a name cannot be found again: then the ranges are looked at again
        decisions = {} if None in by_range else {"kept": by_range}
        return PassResult(changed, stats, (*notes, *_skips(plan)), decisions)

    def _observe(self, module: Module, ranges: Ranges, ctx: Context) -> list[Skip]:
        """Runs the module on samples; returns what could not be checked."""
        missing = unevaluable(module)
        if missing:
            reason = f"no numpy meaning for {', '.join(missing[:3])}: ranges were not checked"
            return [Skip("the whole module", reason)]
        ranges.observe(_samples(module, ctx), module, ctx.seed)
        unseen = sum(
            value.dtype is DType.F32 and value not in ranges.largest
            for node in module.graph.walk()
            for value in node.outputs
        )
        if not unseen:
            return []
        return [Skip("branches", f"{unseen} values were computed on no sample: not range-checked")]


def _samples(module: Module, ctx: Context) -> Sequence[Mapping[str, Any]]:
    if ctx.samples or ctx.probes:
        return (ctx.samples or ctx.probes)[:_MAX_SAMPLES]
    run = EvalRunner(module)
    runs, last_resort = accepts(run), accepts(run, with_empty=True)
    made = generate_samples(module, runs, seed=ctx.seed, last_resort=last_resort)
    return [sample.inputs for sample in made]


def _name(node: Node) -> str:
    return node.outputs[0].name or node.op.name


def _is_by_numbers(reason: str) -> bool:
    return any(word in reason for word in (" reaches ", " stays below ", " may reach ", "recorded"))


def _skips(plan: Plan) -> list[Skip]:
    """Returns one entry per place kept by its numbers or by option, one per kind otherwise."""
    skips: list[Skip] = []
    kinds: Counter[tuple[str, str]] = Counter()
    for node, reason in plan.kept.items():
        if node.bodies:
            continue
        if _is_by_numbers(reason) or reason.startswith("kept"):
            skips.append(Skip(_name(node), reason))
        else:
            op = node.attrs["op_type"] if node.op is opaque else node.op.name
            kinds[op, reason] += 1
    skips += [Skip(f"{n} x {op}", f"stays in f32: {why}") for (op, why), n in kinds.items()]
    return skips
