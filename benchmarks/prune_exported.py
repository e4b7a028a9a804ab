"""How much of the exported corpus prunes: `python -m benchmarks.prune_exported [NAME …]`.

Every exported model is pruned zero-config to half of its FLOPs, and by a random plan that is
compared with the masked model in f64 (see `tests/passes/pruning`). A row says what was found, what
was reached, and, where the target was out of reach, the operator, axis and reason that stop it.
Exits 1 when a result is wrong, a model crashes, or a refusal has no reason.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fixtures import store
from regraft.frontends.onnx.load import import_model
from regraft.ir.errors import RegraftError, TargetError
from regraft.ir.module import Module
from regraft.passes.cleanup import Canonicalize
from regraft.passes.fusion import Fuse
from regraft.passes.protocol import Context
from regraft.passes.pruning import Prune
from tests.passes.pruning.checking import TOLERANCE, prune_and_compare

WRONG = ("wrong", "crash")


@dataclass(frozen=True, slots=True)
class Row:
    """One model.

    Attributes:
        name: The fixture.
        outcome: `half` (target met), `limited` (refused, with a reason), `wrong` or `crash`.
        groups: Number of groups.
        achieved: FLOPs left, as a fraction, where the target was met.
        error: Largest difference from the masked model, relative to its largest output.
        seconds: Time of coupling, plan and rewrite.
        note: Why it is limited, wrong or crashed.
    """

    name: str
    outcome: str
    groups: int = 0
    achieved: float = 1.0
    error: float = 0.0
    seconds: float = 0.0
    note: str = ""


def measure(name: str, module: Module, inputs: Mapping[str, Any], target: str) -> Row:
    """Prunes one module twice, at random and to the target.

    Args:
        name: What to call it.
        module: The module as it was captured; it is rewritten.
        inputs: Arrays by name.
        target: What to reach.
    """
    try:
        for item in (Canonicalize(), Fuse(), Canonicalize()):
            item.run(module, Context())
        compared = prune_and_compare(module, inputs, 0)
        if compared.error > TOLERANCE:
            return Row(name, "wrong", compared.groups, error=compared.error)
        start = time.perf_counter()
        try:
            result = Prune(target).run(module, Context())
        except TargetError as error:
            note = f"{error.message.removeprefix('pass `prune`: ')}; {error.hint}"
            return Row(name, "limited", compared.groups, error=compared.error, note=note)
    except (RegraftError, AssertionError, ValueError, IndexError, KeyError, TypeError) as error:
        return Row(name, "crash", note=f"{type(error).__name__}: {error}")
    seconds = time.perf_counter() - start
    achieved = float(result.stats["achieved"])
    return Row(name, "half", compared.groups, achieved, compared.error, seconds)


def rows(names: Iterable[str], target: str) -> Iterable[Row]:
    """Yields one row per fixture."""
    for name in names:
        yield measure(name, import_model(store.load(name), Path()), store.samples(name), target)


def main() -> None:
    """Prints one line per model and the totals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="fixtures, default: all of them")
    parser.add_argument("--target", default="flops:0.5")
    args = parser.parse_args()
    totals: Counter[str] = Counter()
    worst = 0.0
    for row in rows(args.names or store.names(), args.target):
        totals[row.outcome] += 1
        worst = max(worst, row.error)
        reached = f"{row.achieved:.4f}" if row.outcome == "half" else ""
        print(
            f"{row.name:44} {row.outcome:8} {row.groups:4} groups  {reached:7}"
            f"error {row.error:.0e}  {row.seconds:.2f} s  {row.note}",
            flush=True,
        )
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(totals.items())))
    print(f"largest difference from the masked model: {worst:.1e} (allowed {TOLERANCE:.0e})")
    sys.exit(any(totals[outcome] for outcome in WRONG))


if __name__ == "__main__":
    main()
