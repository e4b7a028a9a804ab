"""`convert`: capture, passes, emission, check, and the files of the result."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regraft.backends.onnx import PROFILES, save_onnx
from regraft.backends.onnx.legalize import TARGETS as LEGALIZED
from regraft.backends.onnx.legalize import legalizers
from regraft.checking import Checker
from regraft.ir.errors import UnsupportedError, UsageError
from regraft.ir.freeze import freeze
from regraft.ir.module import Module
from regraft.ir.rewrite import Rule, RuleSet
from regraft.ir.types import DType
from regraft.output import check_destination, staged
from regraft.passes import PASSES
from regraft.passes.check.module_check import CheckReport, combined_contract
from regraft.passes.check.samples import Sample
from regraft.passes.legalize import Legalize
from regraft.passes.manager import CheckMode, PassManager, PassRecord
from regraft.passes.pipeline import parse_pipeline, suggest
from regraft.passes.precision import Cast
from regraft.passes.protocol import Context, Lossy, Pass
from regraft.passes.recipe import Recipe, format_recipe
from regraft.passes.rule_pass import HasRules, pass_of_rules
from regraft.plugins import Extensions, combine
from regraft.report import build_report, operator_counts, versions
from regraft.samples import bind_samples, check_dims
from regraft.sources import Source, open_source, sha256_of
from regraft.tables import user_tables

TARGETS = (*PROFILES, "torch", "triton", "hf")
DEFAULT_PASSES = "canonicalize,fold-norms,canonicalize"
MODEL_FILE = "model.onnx"
DTYPES = {"fp32": DType.F32, "fp16": DType.F16, "bf16": DType.BF16}


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """Options of `convert`; see INTERFACE.

    Args:
        target: `onnx`, `ort-cpu` or `ort-cuda`.
        passes: Pipeline string, pass objects, or None for the target's default.
        opset: Emission opset, or None to keep the source's.
        freeze: Symbols to fix by name.
        dims: Sizes of generated samples; never freezes.
        samples: Samples to check and calibrate with.
        check: When outputs are compared.
        rtol: Overrides the relative tolerance.
        atol: Adds an absolute tolerance.
        max_memory_bytes: Working-memory budget.
        seed: Seed of everything random.
        force: Replace an existing output.
        dry_run: Do everything except writing the output.
        dtype: `fp32`, `fp16` or `bf16`: adds the pass `cast`.
        max_drop: What lossy passes may lose.
        extensions: Passes and operators, those of plugins among them; default: regraft's own.
        explain: Rule whose near misses are wanted.
        replay: Recorded decisions by name of the pass, which passes take again.
        plugins: Where `extensions` come from (`FILE.py:NAME`), recorded for `rerun`.
    """

    target: str = "ort-cpu"
    passes: str | Sequence[Pass | Rule] | None = None
    opset: int | None = None
    freeze: Mapping[str, int] = field(default_factory=dict)
    dims: Mapping[str, int] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()
    check: CheckMode = CheckMode.MODULE
    rtol: float | None = None
    atol: float | None = None
    max_memory_bytes: int | None = None
    seed: int = 0
    force: bool = False
    dry_run: bool = False
    dtype: str | None = None
    max_drop: str | None = None
    extensions: Extensions = field(default_factory=lambda: combine(()))
    explain: str | None = None
    replay: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    plugins: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """What `convert` made.

    Args:
        out: The output path, None for a dry run.
        module: The rewritten module.
        passes: One record per pass.
        check: The module check.
        report: The content of `report.json`.
        explanations: Near misses of the rule named by `explain`.
    """

    out: Path | None
    module: Module
    passes: tuple[PassRecord, ...]
    check: CheckReport
    report: Mapping[str, Any]
    explanations: tuple[str, ...] = ()


def resolve_passes(
    passes: str | Sequence[Pass | Rule] | None, known: Sequence[type[Pass]] = PASSES
) -> list[Pass]:
    """Returns pass objects of a pipeline string, a sequence, or the default.

    A rewrite rule in the sequence becomes a pass that applies it.
    """
    if passes is None:
        passes = DEFAULT_PASSES
    if isinstance(passes, str):
        return parse_pipeline(passes, known)
    return [
        pass_of_rules(item.name, RuleSet(item))() if isinstance(item, Rule) else item
        for item in passes
    ]


def check_rule_name(rule: str | None, passes: Sequence[Pass]) -> None:
    """Checks that a pass of the pipeline has the rule that `--explain` names.

    Raises:
        UsageError: When none has.
    """
    if rule is None:
        return
    known = {
        each.name
        for item in passes
        if isinstance(item, HasRules)
        for each in item.rules().compile()
    }
    if rule not in known:
        raise UsageError(f"no pass of the pipeline has a rule `{rule}`", hint=suggest(rule, known))


def with_dtype(
    passes: Sequence[Pass], module: Module, wanted: str | None, target: str
) -> list[Pass]:
    """Returns the pipeline with the pass that `--dtype` asks for, before the module is legalized.

    Raises:
        UsageError: For an unknown type, or when the pipeline casts already.
        UnsupportedError: For a wider type than the source's, or one that the target cannot run.
    """
    if wanted is None:
        return list(passes)
    if wanted not in DTYPES:
        raise UsageError(f"unknown dtype `{wanted}`", hint=suggest(wanted, DTYPES))
    if any(isinstance(item, Cast) for item in passes):
        raise UsageError("the pipeline has a pass `cast`, and --dtype is given", hint="give one")
    own = _own_dtype(module)
    if own is DTYPES[wanted]:
        return list(passes)
    if wanted == "fp32":
        raise UnsupportedError(
            f"`--dtype fp32`: the source's weights are {own or 'not floating point'}, and casting "
            "to a wider type is not built yet",
            hint="leave --dtype out",
        )
    if wanted == "bf16" and target == "ort-cpu":
        raise UnsupportedError(
            "`--dtype bf16`: ONNX Runtime's CPU provider has no bf16 kernels",
            hint="use --dtype fp16, or --target onnx or ort-cuda",
        )
    late = [getattr(item, "level", "canonical") != "canonical" for item in passes]
    place = late.index(True) if any(late) else len(passes)
    return [*passes[:place], Cast("fp16" if wanted == "fp16" else "bf16"), *passes[place:]]


def _own_dtype(module: Module) -> DType | None:
    """Returns the float type that most of the weights' bytes have."""
    sizes: dict[DType, int] = {}
    for name in module.weights:
        weight = module.weights[name]
        if weight.dtype.is_float:
            sizes[weight.dtype] = sizes.get(weight.dtype, 0) + weight.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype], default=None)


def with_legalization(passes: Sequence[Pass], target: str, opset: int | None) -> list[Pass]:
    """Returns the pipeline with `legalize` at its end, where the target has several forms."""
    if target not in LEGALIZED or any(isinstance(item, Legalize) for item in passes):
        return list(passes)
    return [*passes, Legalize(target) if opset is None else Legalize(target, opset)]


def check_max_drop(max_drop: str | None, passes: Sequence[Pass]) -> None:
    """Checks `--max-drop`: it bounds what lossy passes may lose, and there are none yet.

    Raises:
        UsageError: When no pass is lossy.
        UnsupportedError: When one is.
    """
    if max_drop is None:
        return
    if not any(isinstance(item.contract, Lossy) for item in passes):
        raise UsageError(
            "`--max-drop` bounds what lossy passes lose; every pass of this pipeline is exact",
            hint="leave it out: the check of the result is stricter",
        )
    raise UnsupportedError("`--max-drop` is not built yet")


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
    if options.target not in TARGETS:
        raise UsageError(
            f"unknown target `{options.target}`", hint=suggest(options.target, TARGETS)
        )
    if options.target not in PROFILES:
        raise UnsupportedError(
            f"target `{options.target}` is not built yet", hint=f"use {', '.join(PROFILES)}"
        )
    path = None if out is None else Path(out)
    if path is None and not options.dry_run:
        raise UsageError("an output path is needed", hint="give -o OUT, or --dry-run")
    if path is not None and not options.dry_run:
        check_destination(path, force=options.force)
    passes = resolve_passes(options.passes, options.extensions.passes)
    check_rule_name(options.explain, passes)
    check_max_drop(options.max_drop, passes)
    say = progress or (lambda stage: None)
    return _Conversion(source, path, options, passes, say).run()


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

    def _stage(self, name: str, work: Callable[[], Any]) -> Any:
        self.say(name)
        start = time.perf_counter()
        result = work()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        return result

    def run(self) -> ConvertResult:
        options = self.options
        source: Source = self._stage(
            "load", lambda: open_source(self.raw_source, ops=options.extensions.operators)
        )
        module = source.module
        self.passes = with_dtype(self.passes, module, options.dtype, options.target)
        self.passes = with_legalization(self.passes, options.target, options.opset)
        check_dims(module, options.dims)
        given = bind_samples(module, options.samples)
        before = operator_counts(module.graph)
        checker = None
        if options.check is not CheckMode.OFF:
            checker = self._stage("samples", lambda: self._make_checker(source, given))
        if options.freeze:
            freeze(module, options.freeze)
        ctx = Context(
            seed=options.seed, target=options.target, samples=options.samples,
            probes=[s.inputs for s in checker.samples] if checker else (),
            replay=options.replay, dims={**options.dims, **options.freeze},
            legalizers=legalizers(user_tables()),
            max_memory_bytes=options.max_memory_bytes, explain=options.explain,
        )  # fmt: skip
        manager = PassManager(
            ctx, options.check, checker.samples if checker else (),
            progress=lambda i, total, item: self.say(item.name),
        )  # fmt: skip
        records = self._stage("passes", lambda: manager.run(module, self.passes))
        make = lambda check, size: build_report(  # noqa: E731
            source, module, records, check, before=before, target=options.target,
            num_bytes=size, seconds=self.seconds,
        )  # fmt: skip
        check, report = self._write(source, module, records, checker, make)
        out = None if options.dry_run else self.out
        return ConvertResult(out, module, tuple(records), check, report, tuple(ctx.explanations))

    def _make_checker(self, source: Source, given: Sequence[Sample]) -> Checker:
        options = self.options
        dims = {**options.dims, **options.freeze}
        checker = Checker(
            source, dims=dims, seed=options.seed, max_memory_bytes=options.max_memory_bytes,
            rtol=options.rtol, atol=options.atol,
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
        import tempfile

        target = self.out
        if options.dry_run or target is None:
            folder = Path(tempfile.mkdtemp(prefix="regraft-"))
            target = folder / "out"
        with staged(target, force=True) as temp:
            is_file = bool(target.suffix)
            model = temp / (target.name if is_file else MODEL_FILE)
            files = self._stage(
                "emit",
                lambda: save_onnx(module, model, profile=options.target, opset=options.opset),
            )
            size = sum(file.stat().st_size for file in files)
            check = CheckReport("no (checks are off)", True)
            if checker is not None:
                contract = combined_contract(item.contract for item in self.passes)
                check = self._stage("check", lambda: checker.compare(module, model, contract))
                check.raise_if_failed()
            report = make_report(check, size)
            if not is_file:
                (temp / "report.json").write_text(json.dumps(report, indent=2) + "\n")
                (temp / "recipe.yaml").write_text(self._recipe(source, records))
        if options.dry_run or self.out is None:
            import shutil

            shutil.rmtree(target.parent, ignore_errors=True)
        return check, report

    def _recipe(self, source: Source, records: Sequence[PassRecord]) -> str:
        options = self.options
        settings: dict[str, Any] = {"target": options.target, "seed": options.seed}
        if options.opset is not None:
            settings["opset"] = options.opset
        if options.freeze:
            settings["freeze"] = dict(options.freeze)
        provenance: dict[str, Any] = {
            "source_sha256": source.sha256,
            "versions": versions(),
            "decisions": {r.name: dict(r.decisions) for r in records if r.decisions},
        }
        if options.plugins:
            provenance["plugins"] = {
                place: sha256_of(Path(place.rpartition(":")[0])) for place in options.plugins
            }
        return format_recipe(Recipe(tuple(self.passes), settings, provenance))
