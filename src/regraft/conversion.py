"""`convert`: capture, passes, emission, check, and the files of the result."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from regraft.backends.onnx import PROFILES
from regraft.benching import bench
from regraft.calibration import read_calibration
from regraft.checking import Checker
from regraft.comparison import make_runner
from regraft.contexts import Probes, make_context
from regraft.conversion_options import ConvertOptions, ConvertResult
from regraft.conversion_records import recipe_of
from regraft.emission import (
    TRITON,
    check_known,
    check_source,
    check_target,
    described,
    emit,
    model_file,
    written_runner,
)
from regraft.ir.errors import UnsupportedError, UsageError
from regraft.ir.freeze import freeze
from regraft.ir.growth import Growth
from regraft.ir.module import Module
from regraft.lossy_parts import LossyParts
from regraft.metrics import Asked
from regraft.output import check_destination, staged
from regraft.passes.check.module_check import CheckReport, combined_contract
from regraft.passes.check.runners import Runner
from regraft.passes.check.samples import Sample
from regraft.passes.manager import CheckMode, PassManager, PassRecord
from regraft.passes.protocol import Pass, Samples
from regraft.passes.quality.measure import LABELS
from regraft.passes.recovery.data import Data
from regraft.pipelines import (
    check_rule_name,
    drop_stops,
    resolve_passes,
    with_dtype,
    with_legalization,
)
from regraft.quality import check_drop, drop_target, folders_of, measure_sources
from regraft.report import build_report, operator_counts
from regraft.report_html import GraphView, can_render, report_page, view_of
from regraft.report_html.pages import MISSING
from regraft.samples import bind_samples, check_dims, read_samples
from regraft.sources import Source, open_source
from regraft.training import read_training


def convert(
    source: Any,
    out: str | Path | None,
    options: ConvertOptions | None = None,
    *,
    progress: Callable[[str], None] | None = None,
) -> ConvertResult:
    """Converts a model; the output is written whole or not at all.

    Args:
        source: A path, ModelProto or module.
        out: A folder, or a file with a suffix; None only for a dry run.
        options: What to do.
        progress: Called with the name of each stage as it begins.

    Raises:
        RegraftError: With its exit code: 2 bad input, 3 a check failed, 1 the work failed.
    """
    options = options or ConvertOptions()
    check_known(options.target)
    options = _with_samples(options)
    path = None if out is None else Path(out)
    if path is None and not options.dry_run:
        raise UsageError("an output path is needed", hint="give -o OUT, or --dry-run")
    if options.bench and options.target not in PROFILES:
        raise UsageError(
            f"`--bench` measures ONNX files, the target is `{options.target}`",
            hint=f"use --target {', '.join(PROFILES)}",
        )
    if options.opset is not None and options.target not in PROFILES:
        raise UsageError(
            f"`--opset` is that of an ONNX file, the target is `{options.target}`",
            hint=f"leave it out, or use --target {', '.join(PROFILES)}",
        )
    check_target(path, options.target, options.aot)
    if path is not None and not options.dry_run:
        check_destination(path, force=options.force)
    passes = resolve_passes(options.passes, options.extensions.passes)
    check_rule_name(options.explain, passes)
    say = progress or (lambda stage: None)
    return _Conversion(source, path, options, passes, say).run()


def _with_samples(options: ConvertOptions) -> ConvertOptions:
    """Returns the options with the samples that `inputs` names.

    Raises:
        InputError: When they cannot be read.
        UsageError: When samples are given as arrays, too.
    """
    if options.inputs is None:
        return options
    if len(options.samples) > 0:
        raise UsageError("give `samples` or `inputs`, not both", hint="`inputs` is where they lie")
    return replace(options, samples=read_samples(options.inputs))


class _Conversion:
    """One run of `convert`, stage by stage, each stage timed."""

    def __init__(
        self,
        source: Any,
        out: Path | None,
        options: ConvertOptions,
        passes: list[Pass],
        say: Callable[[str], None],
    ) -> None:
        self.raw_source = source
        self.out = out
        self.options = options
        self.passes = passes
        self.say = say
        self.seconds: dict[str, float] = {}
        self.before: GraphView | None = None
        self.original: Source | None = None
        self.probes: Samples = ()
        self.calibration: Samples = ()
        self.parts: LossyParts | None = None

    def _stage(self, name: str, work: Callable[[], Any]) -> Any:
        self.say(name)
        start = time.perf_counter()
        result = work()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        return result

    def run(self) -> ConvertResult:
        options = self.options
        source: Source = self._stage(
            "load", lambda: open_source(self.raw_source, options.extensions)
        )
        module = source.module
        check_source(module, options.target, options.extensions)
        self.passes = with_dtype(self.passes, module, options.dtype, options.target)
        self.passes = with_legalization(self.passes, options.target, options.opset)
        check_dims(module, options.dims)
        given = bind_samples(module, options.samples)
        calibration = options.calibrate
        if isinstance(calibration, Path):
            calibration = read_calibration(calibration, source, options.tokenizer)
        bind_samples(module, calibration, beside=(LABELS,))
        self.calibration = calibration or options.samples
        training = self._training(source)
        drop_stops(module, self.passes, options.target)
        before = operator_counts(module.graph)
        self.before = self._view(module)
        if options.bench or options.quality is not None:
            self.original = replace(source, module=module.clone())
        checker = None
        if options.check is not CheckMode.OFF:
            checker = self._stage("samples", lambda: self._make_checker(source, given))
        if options.freeze:
            freeze(module, options.freeze)
        self.probes = self._probes(source, checker, given)
        ctx = make_context(
            options.extensions, samples=self.calibration, probes=self.probes,
             target=options.target,
            dims={**options.dims, **options.freeze}, seed=options.seed,
            checkpoints=options.checkpoints, training=training, replay=options.replay,
            max_memory_bytes=options.max_memory_bytes, explain=options.explain,
        )  # fmt: skip
        if checker is not None:
            self.parts = LossyParts(
                checker, self.passes, options.extensions, rtol=options.rtol, atol=options.atol
            )
        manager = PassManager(
            ctx, options.check, checker.samples if checker else (),
            progress=lambda i, total, item: self.say(item.name), watcher=self.parts,
        )  # fmt: skip
        records = self._stage("passes", lambda: manager.run(module, self.passes))
        make = lambda check, size: build_report(  # noqa: E731
            source, module, records, check, before=before, target=options.target,
            num_bytes=size, seconds=self.seconds,
        )  # fmt: skip
        check, report = self._write(source, module, records, checker, make)
        out = None if options.dry_run else self.out
        return ConvertResult(out, module, tuple(records), check, report, tuple(ctx.explanations))

    def _training(self, source: Source) -> Data | None:
        """Returns what passes train on, as batches."""
        given = self.options.train
        if not isinstance(given, Path):
            return given
        return read_training(given, source.module, folders_of(source), self.options.seed)

    def _probes(self, source: Source, checker: Checker | None, given: Sequence[Sample]) -> Samples:
        """Returns the samples of a check: the same ones whether outputs are checked or not."""
        if checker is not None:
            return [sample.inputs for sample in checker.samples]
        before = replace(source, module=source.module.clone())
        return Probes(lambda: self._make_checker(before, given).samples)

    def _example(self) -> Mapping[str, Any] | None:
        """Returns the smallest inputs, for a target whose output tests itself; None without any.

        Raises:
            UnsupportedError: When launches are compiled, which an example has to show.
        """
        if self.options.target != TRITON:
            return None
        if not self.probes:
            if self.options.aot:
                raise UnsupportedError(
                    "`--aot` compiles the launches of an example, and the source runs on no "
                    "generated sample", hint="give samples with --inputs",
                )  # fmt: skip
            return None
        return min(self.probes, key=lambda sample: sum(np.size(each) for each in sample.values()))

    def _make_checker(self, source: Source, given: Sequence[Sample]) -> Checker:
        options = self.options
        dims = {**options.dims, **options.freeze}
        checker = Checker(
            source, dims=dims, seed=options.seed, max_memory_bytes=options.max_memory_bytes,
            rtol=options.rtol, atol=options.atol,
            contract=combined_contract(item.contract for item in self.passes),
        )  # fmt: skip
        checker.prepare(given)
        return checker

    def _write(
        self,
        source: Source,
        module: Module,
        records: Sequence[PassRecord],
        checker: Checker | None,
        make_report: Callable[[CheckReport, int], dict[str, Any]],
    ) -> tuple[CheckReport, dict[str, Any]]:
        options = self.options
        target = self.out
        if options.dry_run or target is None:
            folder = Path(tempfile.mkdtemp(prefix="regraft-"))
            target = folder / "out"
        with staged(target, force=True) as temp:
            is_file = bool(target.suffix)
            model = temp / (target.name if is_file else model_file(options.target))
            contract = combined_contract(item.contract for item in self.passes)
            begun: list[Future[CheckReport]] = []

            def watch(growth: Growth | None) -> None:
                if checker is not None and checker.streams:
                    begun.append(checker.start(module, model, growth, contract))

            files = self._stage(
                "emit",
                lambda: emit(
                    module, model, target=options.target, opset=options.opset,
                    extensions=options.extensions, watch=watch, sample=self._example(),
                    aot=options.aot, calibration=self.calibration,
                ),
            )  # fmt: skip
            size = sum(file.stat().st_size for file in files)
            check = CheckReport("no (checks are off)", True)
            if checker is not None:
                check = self._stage(
                    "check",
                    begun[0].result if begun else lambda: checker.compare(module, model, contract),
                )
                check.raise_if_failed()
            if self.parts is not None:
                self.parts.judge(module, model)
                check = replace(check, parts=self.parts.parts)
            after = self._view(module)
            report = make_report(check, size)
            report |= described(model.parent, options.target)
            if options.quality is not None:
                self._check_quality(options.quality, report, written_runner(model, module))
            if options.bench:
                made = Source(module, str(self.out or "result"), None, size, None, model)
                report["bench"] = self._stage("bench", lambda: self._measured(made))
            if self.before is not None and after is not None:
                report["page"] = "report.html"
                page = report_page(report, self.before, after)
                (temp / report["page"]).write_text(page, encoding="utf-8")
            elif self._is_folder:
                report["page"] = f"no ({MISSING})"
            if not is_file:
                (temp / "report.json").write_text(json.dumps(report, indent=2) + "\n")
                (temp / "recipe.yaml").write_text(recipe_of(options, self.passes, source, records))
        if options.dry_run or self.out is None:
            shutil.rmtree(target.parent, ignore_errors=True)
        return check, report

    def _check_quality(self, asked: Asked, report: dict[str, Any], written: Runner) -> None:
        """Measures what was asked for and adds it to the report.

        Raises:
            TargetError: When more is lost than is allowed.
        """
        if self.original is None:
            raise AssertionError("nothing is to be measured")
        original = self.original
        found = self._stage(
            "quality",
            lambda: measure_sources(
                asked.metric, asked.data, original, original, (make_runner(original), written)
            ),
        )
        report["quality"] = found.to_json()
        if asked.max_drop is not None:
            report["targets"].append(asdict(drop_target(found, asked.max_drop)))
            check_drop(found, asked.max_drop)

    def _measured(self, made: Source) -> dict[str, Any]:
        """Returns latency of source and result; see `regraft.benching`."""
        if self.original is None:
            raise AssertionError("nothing is to be measured")
        options = self.options
        dims = {**options.dims, **options.freeze}
        measured = bench(
            [self.original, made], samples=options.samples, dims=dims, seed=options.seed
        )
        return measured.to_json()

    @property
    def _is_folder(self) -> bool:
        """Whether an output folder will be written, which holds the page."""
        return self.out is not None and not self.out.suffix and not self.options.dry_run

    def _view(self, module: Module) -> GraphView | None:
        """Returns what the page shows of the graph; None when no page is written."""
        if not self._is_folder or not can_render():
            return None
        view: GraphView = self._stage("page", lambda: view_of(module))
        return view
