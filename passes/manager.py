"""Runs pipelines: verifies, times, checks, snapshots, and writes reproducers on failure."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regraft.ir.errors import CheckError, RegraftError, UsageError
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.ir.opspec import Trait
from regraft.ir.verify import check as check_ir
from regraft.passes.check.module_check import CheckReport, Runner, check_module
from regraft.passes.check.runners import EvalRunner
from regraft.passes.check.samples import Sample
from regraft.passes.pipeline import format_pass, format_pipeline
from regraft.passes.protocol import Context, Pass, Skip
from regraft.passes.reproducer import write_reproducer


class CheckMode(enum.Enum):
    """When outputs are compared."""

    OFF = "off"
    MODULE = "module"
    EACH = "each"


@dataclass(frozen=True, slots=True)
class PassRecord:
    """One pass of a finished pipeline, as `report.json` shows it."""

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


@dataclass(slots=True)
class PassManager:
    """Runs passes over a module in place.

    Attributes:
        ctx: What passes may use.
        check: When outputs are compared (`MODULE` is the caller's to do, on the emitted result).
        samples: Samples for `EACH`, that the source runs.
        make_runner: Runs a module for `EACH`; the numpy evaluator by default.
        dump_dir: Folder for numbered text dumps after every pass, or None.
        progress: Called with (index, total, pass) before each pass.
    """

    ctx: Context
    check: CheckMode = CheckMode.OFF
    samples: Sequence[Sample] = ()
    make_runner: Callable[[Module], Runner] = EvalRunner
    dump_dir: Path | None = None
    progress: Callable[[int, int, Pass], None] | None = None

    def run(self, module: Module, passes: Sequence[Pass]) -> list[PassRecord]:
        """Runs the pipeline.

        Raises:
            CheckError: When a pass broke its contract under `EACH`; the module is as before the
                pass, and the message names the reproducer folder.
            RegraftError: What a pass raised, with the pass named in a note.
        """
        if module.level != "canonical":
            late = [item.name for item in passes if getattr(item, "level", "canonical") == "canonical"]
            if late:
                raise UsageError(
                    f"pass `{late[0]}` runs on canonical IR, the module is legalized for {module.level}",
                    hint="run it before `legalize`",
                )
        records = []
        for i, item in enumerate(passes):
            if self.progress is not None:
                self.progress(i, len(passes), item)
            records.append(self._run_one(module, item, passes[i:]))
            if self.dump_dir is not None:
                self.dump_dir.mkdir(parents=True, exist_ok=True)
                (self.dump_dir / f"{i:03d}-{item.name}.rg").write_text(str(module))
        return records

    def _run_one(self, module: Module, item: Pass, rest: Sequence[Pass]) -> PassRecord:
        snapshot = module.clone() if self.check is CheckMode.EACH else None
        before = count_nodes(module.graph)
        start = time.perf_counter()
        try:
            result = item.run(module, self.ctx)
            check_ir(module)
        except RegraftError as error:
            error.add_note(f"in pass `{format_pass(item)}`")
            raise
        seconds = time.perf_counter() - start
        verified = "module" if self.check is CheckMode.MODULE else "no (checks are off)"
        if not result.changed:
            verified = "unchanged"
        elif snapshot is not None:
            verified = self._check_one(snapshot, module, item, rest).verified
        return PassRecord(
            item.name, format_pass(item), result.changed, seconds, str(item.contract), verified,
            result.stats, result.skipped, result.decisions, before, count_nodes(module.graph),
        )  # fmt: skip

    def _check_one(
        self, snapshot: Module, module: Module, item: Pass, rest: Sequence[Pass]
    ) -> CheckReport:
        report = check_module(
            self.make_runner(snapshot),
            EvalRunner(snapshot, oracle=True) if self.make_runner is EvalRunner else None,
            self.make_runner(module),
            self.samples,
            contract=item.contract,
            verified="each",
        )
        if report.ok:
            return report
        broken = max(report.outputs, key=lambda diff: (not diff.ok, diff.max_rel))
        restore(module, snapshot)
        where = write_reproducer(snapshot, self.samples, format_pipeline(rest), self.ctx.work_dir)
        raise CheckError(
            f"pass `{format_pass(item)}` changed output `{broken.name}`: {broken.reason}",
            hint=f"the reproducer is in `{where}`" if where else None,
        )


def restore(module: Module, snapshot: Module) -> None:
    """Makes `module` what `snapshot` is; weights are shared."""
    module.graph = snapshot.graph
    module.states = snapshot.states
    module.meta = snapshot.meta
    module.level = snapshot.level


def count_nodes(graph: Graph) -> int:
    """Returns the number of compute nodes, bodies included, constants not."""
    return sum(not node.op.traits & Trait.CONSTANT for node in graph.walk())

