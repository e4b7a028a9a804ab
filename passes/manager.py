"""Runs pipelines: verifies, times, checks, snapshots, and writes reproducers on failure."""

from __future__ import annotations

import dataclasses
import enum
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from regraft.ir.errors import CheckError, RegraftError, UsageError
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.ir.opspec import Trait
from regraft.ir.verify import check as check_ir
from regraft.passes.check.cut_run import max_elements
from regraft.passes.check.match_check import MatchChecker, describe
from regraft.passes.check.module_check import CheckReport, check_module
from regraft.passes.check.rounding import RetypedRunner, plain_for
from regraft.passes.check.runners import EvalRunner, Runner
from regraft.passes.check.samples import Sample
from regraft.passes.check.second_look import second_look
from regraft.passes.pipeline import format_pass, format_pipeline
from regraft.passes.plots import Plot
from regraft.passes.protocol import (
    Context,
    LayerError,
    Lossy,
    Pass,
    PassResult,
    Rounded,
    Skip,
    Target,
)
from regraft.passes.reproducer import write_reproducer

_HELD_BACK = 4
"""A quarter of the samples is held back for a pass that judges what others fitted."""


class CheckMode(enum.Enum):
    """What is compared while and after passes run."""

    OFF = "off"
    MATCH = "match"
    """Every rewrite of a rule, on generated inputs."""
    MODULE = "module"
    """Every rewrite, and the source with the emitted result, once, by the caller."""
    EACH = "each"
    """Every rewrite, and all outputs after every pass."""


@dataclass(frozen=True, slots=True)
class PassRecord:
    """One pass of a finished pipeline, as `report.json` shows it.

    Args:
        name: The pass.
        pipeline: The pass with its options, as pipeline text.
        changed: Whether the module differs from before.
        seconds: Time of the pass itself, checks of its rewrites included.
        contract: What it promises.
        verified: `match`, `module`, `each` or `no (reason)`.
        stats: Counts and figures.
        skipped: Places left alone.
        unproved: Places rewritten that no check evaluated by themselves.
        decisions: Resolved choices.
        nodes_before: Compute nodes before.
        nodes_after: Compute nodes after.
        targets: Figures that were asked for.
        layers: What rounding costs each layer, the worst first.
        plots: What was measured, for reports to draw.
    """

    name: str
    pipeline: str
    changed: bool
    seconds: float
    contract: str
    verified: str
    stats: Mapping[str, int | float] = field(default_factory=dict)
    skipped: tuple[Skip, ...] = ()
    decisions: Mapping[str, Any] = field(default_factory=dict)
    nodes_before: int = 0
    nodes_after: int = 0
    unproved: tuple[Skip, ...] = ()
    targets: tuple[Target, ...] = ()
    layers: tuple[LayerError, ...] = ()
    plots: tuple[Plot, ...] = ()


class Watcher(Protocol):
    """Sees the module between passes."""

    def before(self, idx: int, module: Module) -> None:
        """Is called before pass `idx` of the pipeline."""

    def after(self, idx: int, module: Module) -> None:
        """Is called after it."""


@dataclass(slots=True)
class PassManager:
    """Runs passes over a module in place.

    Attributes:
        ctx: What passes may use.
        check: What is compared (`MODULE` is the caller's to do, on the emitted result).
        samples: Samples for `EACH`, that the source runs.
        make_runner: Runs a module for `EACH`; the numpy evaluator by default.
        dump_dir: Folder for numbered text dumps after every pass, or None.
        progress: Called with (index, total, pass) before each pass.
        watcher: Sees the module between passes, or None.
    """

    ctx: Context
    check: CheckMode = CheckMode.OFF
    samples: Sequence[Sample] = ()
    make_runner: Callable[[Module], Runner] = EvalRunner
    dump_dir: Path | None = None
    progress: Callable[[int, int, Pass], None] | None = None
    watcher: Watcher | None = None

    def run(self, module: Module, passes: Sequence[Pass]) -> list[PassRecord]:
        """Runs the pipeline.

        Raises:
            CheckError: When a rule or a pass broke its contract; the module is as before the pass,
                and the hint names the reproducer folder.
            RegraftError: What a pass raised, with the pass named in a note.
        """
        refuse_late(module.level, passes)
        records: list[PassRecord] = []
        for i, (key, item) in enumerate(zip(decision_keys(passes), passes, strict=True)):
            if self.progress is not None:
                self.progress(i, len(passes), item)
            self._keep_teacher(module, passes[i:])
            if self.watcher is not None:
                self.watcher.before(i, module)
            records.append(self._run_one(module, item, key, passes[i:]))
            if self.watcher is not None:
                self.watcher.after(i, module)
            if self.dump_dir is not None:
                self.dump_dir.mkdir(parents=True, exist_ok=True)
                (self.dump_dir / f"{i:03d}-{item.name}.rg").write_text(str(module))
        return records

    def _keep_teacher(self, module: Module, rest: Sequence[Pass]) -> None:
        """Keeps what the module is before its first lossy pass, where a later one needs it.

        For a pass that judges by it, the last samples are held back from all others as well.
        """
        judges = any(getattr(item, "needs_source", False) for item in rest[1:])
        is_wanted = judges or any(getattr(item, "needs_teacher", False) for item in rest[1:])
        if self.ctx.teacher is None and is_wanted and isinstance(rest[0].contract, Lossy):
            self.ctx.teacher = module.clone()
            if judges:
                count = len(self.ctx.samples) - len(self.ctx.samples) // _HELD_BACK
                self.ctx.held_out = self.ctx.samples[count:]
                self.ctx.samples = self.ctx.samples[:count]

    def _run_one(self, module: Module, item: Pass, key: str, rest: Sequence[Pass]) -> PassRecord:
        is_checked = self.check is not CheckMode.OFF
        snapshot = module.clone() if is_checked else None
        checker = None
        if is_checked:
            checker = MatchChecker(item.contract, limit=max_elements(module))
        recorded = self.ctx.replay.get(key)
        ctx = dataclasses.replace(
            self.ctx, observer=checker or self.ctx.observer,
            replay={} if recorded is None else {item.name: recorded},
        )  # fmt: skip
        before = count_nodes(module.graph)
        start = time.perf_counter()
        try:
            result = item.run(module, ctx)
            seconds = time.perf_counter() - start
            check_ir(module)
            verified = self._verify(snapshot, module, item, result, checker)
        except RegraftError as error:
            error.add_note(f"in pass `{format_pass(item)}`")
            if snapshot is not None:
                self._recover(module, snapshot, rest, error)
            raise
        except Exception as error:
            error.add_note(f"in pass `{format_pass(item)}`")  # which may be a plugin's
            raise
        stats = dict(result.stats)
        unchecked: tuple[Skip, ...] = ()
        if checker is not None and result.changed:
            stats |= describe(checker)
            unchecked = tuple(
                Skip(f"{count} rewrite{'s' if count > 1 else ''}", reason)
                for reason, count in sorted(checker.unchecked.items())
            )
        return PassRecord(
            item.name, format_pass(item), result.changed, seconds, str(item.contract), verified,
            stats, result.skipped, result.decisions, before, count_nodes(module.graph),
            (*result.unproved, *unchecked), result.targets, result.layers,
            result.plots,
        )  # fmt: skip

    def _recover(
        self, module: Module, snapshot: Module, rest: Sequence[Pass], error: RegraftError
    ) -> None:
        """Makes the module what it was before the pass and writes the reproducer."""
        module.restore(snapshot)
        if isinstance(error, CheckError):
            where = write_reproducer(
                snapshot, self.samples, format_pipeline(rest), self.ctx.work_dir
            )
            error.hint = f"the reproducer is in `{where}`"

    def _verify(
        self,
        snapshot: Module | None,
        module: Module,
        item: Pass,
        result: PassResult,
        checker: MatchChecker | None,
    ) -> str:
        if self.check is CheckMode.OFF:
            return "no (checks are off)"
        if not result.changed:
            return "no (nothing changed)"
        if self.check is CheckMode.EACH and snapshot is not None and self.samples:
            return self._compare(snapshot, module, item).verified
        if checker is None or not checker.num_checked:
            reasons = [] if checker is None else list(checker.unchecked)
            return f"no ({reasons[0] if reasons else 'no rule was applied'})"
        return "match"

    def _compare(self, snapshot: Module, module: Module, item: Pass) -> CheckReport:
        result = self.make_runner(module)
        is_rounded = isinstance(item.contract, Rounded)
        report = check_module(
            self.make_runner(snapshot),
            plain_for(item.contract, snapshot, None),
            RetypedRunner(result, snapshot, module) if is_rounded else result,
            self.samples,
            contract=item.contract,
            verified="each",
            look=None if is_rounded else second_look(snapshot, module),
        )
        if not report.ok:
            broken = max(report.outputs, key=lambda diff: (not diff.ok, diff.max_rel))
            raise CheckError(
                f"pass `{format_pass(item)}` changed output `{broken.name}`: {broken.reason}"
            )
        return report


def decision_keys(passes: Sequence[Pass]) -> list[str]:
    """Returns what the decisions of each pass are recorded under.

    The name of the pass; of one that runs again `name#2` and so on.
    """
    seen: Counter[str] = Counter()
    keys = []
    for item in passes:
        seen[item.name] += 1
        keys.append(item.name if seen[item.name] == 1 else f"{item.name}#{seen[item.name]}")
    return keys


def refuse_late(level: str, passes: Sequence[Pass]) -> None:
    """Checks that no canonical pass runs on target IR.

    Raises:
        UsageError: Naming the first one that does.
    """
    for item in passes:
        if level != "canonical" and getattr(item, "level", "canonical") == "canonical":
            raise UsageError(
                f"pass `{item.name}` runs on canonical IR, the module is legalized for {level}",
                hint="run it before `legalize`",
            )
        if getattr(item, "lowers", False):
            level = getattr(item, "target", "") or "the target"


def count_nodes(graph: Graph) -> int:
    """Returns the number of compute nodes, bodies included, constants not."""
    return sum(not node.op.traits & Trait.CONSTANT for node in graph.walk())
