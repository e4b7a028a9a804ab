"""The module check: source against result, once, on the same samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from regraft.ir.errors import CheckError
from regraft.passes.check.compare import OutputDiff, compare_outputs, step_of
from regraft.passes.check.runners import Runner
from regraft.passes.check.samples import Sample
from regraft.passes.check.second_look import SecondLook
from regraft.passes.check.variation import Variation
from regraft.passes.protocol import Contract, Exact, Lossy, Rounded, Within

NO_NOISE = 0.1
"""A difference of more of the largest element is not looked at twice: it is wrong, or no use."""

_UNTOUCHED = (
    "says nothing about quality: on these samples the result is equal to the source, they do not "
    "reach what was changed; give real ones with --inputs"
)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What the check found.

    Args:
        verified: `module`, `each`, or `no (reason)`.
        ok: False when an output left its tolerance.
        outputs: The worst difference of each output over all samples.
        bindings: The sizes that were tried.
        num_samples: Number of samples compared.
        place: The first value inside that leaves its tolerance, where it was looked for.
        note: Why a measured difference says little, where it does.
        parts: Of a pipeline with lossy passes, what was found of its exact parts: `before` them
            against the source, `after` them against what they left.
        judged: False where differences are measured only: the pipeline is lossy without a bound.
    """

    verified: str
    ok: bool
    outputs: tuple[OutputDiff, ...] = ()
    bindings: tuple[Mapping[str, int], ...] = ()
    num_samples: int = 0
    place: str = ""
    note: str = ""
    parts: Mapping[str, CheckReport] = field(default_factory=dict)
    judged: bool = True

    def raise_if_failed(self, where: str = "") -> None:
        """Raises `CheckError` naming the worst output, after `where`, when the check failed."""
        if self.ok:
            return
        worst = max(self.outputs, key=lambda diff: (not diff.ok, diff.max_rel))
        raise CheckError(
            f"{where}output `{worst.name}`: {worst.reason}"
            + (f"; the first value that is off is {self.place}" if self.place else ""),
            hint="nothing was written; find the pass with `--check=each`",
        )


def combined_contract(contracts: Iterable[Contract]) -> Contract:
    """Returns the weakest contract of a pipeline, which is judged once, source against result.

    Losses with bounds add up; one without makes the whole unbounded.
    """
    contracts = list(contracts)
    lossy = [contract for contract in contracts if isinstance(contract, Lossy)]
    if lossy:
        bounds = [contract.bound for contract in lossy if contract.bound is not None]
        bounded = len(bounds) == len(lossy)
        return Lossy(lossy[0].metric, sum(bounds) if bounded else None)
    weakest: Contract = Exact()
    bound = 0.0
    rounded: Rounded | None = None
    for contract in contracts:
        match contract:
            case Within(limit, why):
                bound = max(bound, limit)
                weakest = Within(bound, why)
            case Rounded():
                rounded = max(rounded or contract, contract, key=lambda c: step_of(c.dtype))
            case Exact() | Lossy():
                continue
    # the noise of rounding is measured, and covers what bounded approximations add
    return rounded or weakest


def check_module(
    reference: Runner,
    plain: Runner | None,
    result: Runner,
    samples: Sequence[Sample],
    *,
    contract: Contract | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    verified: str = "module",
    look: SecondLook | None = None,
) -> CheckReport:
    """Compares a result with its source on every sample.

    Args:
        reference: Runs the source.
        plain: Runs the source with runtime optimizations off, or with the noise of rounding, for
            the noise floor.
        result: Runs the result.
        samples: Samples that the source runs.
        contract: What the passes promise; a lossy pipeline without a bound is measured, not judged.
        rtol: Overrides the relative tolerance.
        atol: Adds an absolute tolerance.
        verified: What to call this check in the report.
        look: Tells noise from error where an output leaves the tolerance.
    """
    is_measured = isinstance(contract, Lossy) and contract.bound is None
    rtol = _tolerance(contract, rtol)
    worst: dict[str, OutputDiff] = {}
    counted: set[str] = set()
    variation = Variation()
    for sample in samples:
        expected = reference(sample.inputs)
        if isinstance(contract, Lossy):
            variation.add(expected)
        actual = result(sample.inputs)
        diffs = compare_outputs(expected, actual, rtol=rtol, atol=atol)
        # noise is measured only where it decides: it takes further runs, or another session
        floor = None
        if plain is not None and not all(diff.ok for diff in diffs):
            floor = plain(sample.inputs)
            diffs = compare_outputs(expected, actual, plain=floor, rtol=rtol, atol=atol)
        failed = [diff.name for diff in diffs if not diff.ok and diff.max_rel <= NO_NOISE]
        if failed and look is not None:
            seen = look.look(sample.inputs, expected, actual, failed)
            diffs = compare_outputs(
                {**expected, **seen.restored}, actual, plain=floor, noise=seen.noise,
                rtol=rtol, atol=atol,
            )  # fmt: skip
        for diff in diffs:
            if diff.counts:
                counted.add(diff.name)
            known = worst.get(diff.name)
            if known is None or _badness(diff) > _badness(known):
                worst[diff.name] = diff
    ok = is_measured or all(diff.ok for diff in worst.values())
    unproven = [name for name in worst if name not in counted]
    if ok and len(unproven) == len(worst):
        verified = f"no (reference outputs are NaN, empty or all zero: {', '.join(unproven[:3])})"
    bindings = tuple({tuple(s.binding.items()): s.binding for s in samples}.values())
    note = variation.note()
    if is_measured and counted and all(diff.ok for diff in worst.values()):
        note = note or _UNTOUCHED
    return CheckReport(
        verified,
        ok,
        tuple(worst.values()),
        bindings,
        len(samples),
        note=note,
        judged=not is_measured,
    )


def _tolerance(contract: Contract | None, rtol: float | None) -> float | None:
    """Returns the relative tolerance of a contract, which the user's overrides; None for exact."""
    match contract:
        case Lossy() | Within() if rtol is None:
            return contract.bound
        case Rounded() if rtol is None:
            return step_of(contract.dtype)  # one step of the largest element, where noise is nil
    return rtol


def _badness(diff: OutputDiff) -> tuple[bool, float]:
    ratio = diff.max_abs / diff.allowed if diff.allowed else float(diff.max_abs > 0)
    return (not diff.ok, ratio)
