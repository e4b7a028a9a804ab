"""The Python surface: load, apply, save, convert, compare, measure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from regraft.backends.onnx import PROFILES, save_onnx
from regraft.comparison import check_inputs, compare_sources, make_runner
from regraft.contexts import Probes, make_context
from regraft.conversion import convert as _convert
from regraft.conversion_options import ConvertOptions, ConvertResult, check_mode
from regraft.ir.errors import UsageError
from regraft.ir.module import Module
from regraft.ir.rewrite import Rule
from regraft.metrics import Metric, parse_metric
from regraft.output import save_text, staged
from regraft.passes.check.module_check import CheckReport
from regraft.passes.check.runners import EvalRunner, accepts
from regraft.passes.check.samples import Sample, generate_samples
from regraft.passes.manager import CheckMode, PassManager, PassRecord
from regraft.passes.protocol import Pass
from regraft.passes.quality.measure import LABELS
from regraft.passes.recovery.data import Data
from regraft.pipelines import check_rule_name, resolve_passes
from regraft.plugins import Extensions, Plugin, combine
from regraft.quality import Quality, measure_quality, measure_sources
from regraft.samples import bind_samples, check_dims
from regraft.sources import open_source
from regraft.torch_sources import Example


def load(source: Any, *, plugins: Sequence[Plugin] = ()) -> Module:
    """Loads a model as a module.

    Args:
        source: A path to an `.onnx`, `.rg` or `.pt2` file or an output folder, or a `ModelProto`.
        plugins: Plugins whose operators a text module may use, and whose importers read a file.

    Raises:
        InputError: When it cannot be used as it is.
    """
    return open_source(source, combine(plugins)).module


def apply(
    module: Module,
    passes: str | Sequence[Pass | Rule],
    *,
    samples: Sequence[Mapping[str, Any]] = (),
    check: str = "match",
    seed: int = 0,
    plugins: Sequence[Plugin] = (),
    training: Data | None = None,
    work_dir: str | Path | None = None,
) -> list[PassRecord]:
    """Runs passes on a module, in place.

    Args:
        module: The module.
        passes: A pipeline string, or pass objects and rewrite rules.
        samples: Samples for calibration and for `check="each"`; default: generated ones.
        check: `match` compares every rewrite of a rule before and after, on generated inputs;
            `each` compares all outputs after every pass as well; `off` compares nothing.
        seed: Seed of everything random.
        plugins: Plugins whose passes a pipeline string may name.
        training: Batches that `recover` trains on; default: the samples.
        work_dir: Folder for checkpoints of training, from which an interrupted run resumes.

    Returns:
        One record per pass; `record.verified` says what was compared.

    Raises:
        CheckError: When a rule or pass broke its contract; the module is as before that pass.
        UsageError: For an unknown pass or option.
    """
    extensions = combine(plugins)
    resolved = resolve_passes(passes, extensions.passes)
    return run_passes(
        module, resolved, samples=samples, check=check_mode(check), seed=seed,
        extensions=extensions, training=training,
        work_dir=None if work_dir is None else Path(work_dir),
    )  # fmt: skip


def run_passes(
    module: Module,
    passes: Sequence[Pass],
    *,
    samples: Sequence[Mapping[str, Any]] = (),
    dims: Mapping[str, int] | None = None,
    check: CheckMode = CheckMode.MATCH,
    seed: int = 0,
    explain: str | None = None,
    explanations: list[str] | None = None,
    dump_dir: Path | None = None,
    extensions: Extensions | None = None,
    training: Data | None = None,
    work_dir: Path | None = None,
) -> list[PassRecord]:
    """Runs pass objects on a module, in place: what `apply` and `regraft opt` do.

    Args:
        module: The module.
        passes: The passes.
        samples: The user's samples.
        dims: Sizes of generated samples.
        check: What is compared.
        seed: Seed of everything random.
        explain: Rule whose near misses are wanted.
        explanations: Filled with them.
        dump_dir: Folder for the text after every pass.
        extensions: What plugins add; default: regraft's own.
        training: Batches that passes train on.
        work_dir: Folder for checkpoints of training.

    Raises:
        CheckError: When a rule or pass broke its contract; the module is as before that pass.
    """
    check_rule_name(explain, passes)
    used = bind_samples(module, samples, beside=(LABELS,))
    if check is CheckMode.EACH and not used:
        used = _generated(module, dims, seed)
    before = module.clone()
    ctx = make_context(
        extensions or combine(()), samples=samples,
        probes=Probes(lambda: used or _generated(before, dims, seed)), dims=dims, seed=seed,
        checkpoints=work_dir, training=training, work_dir=work_dir, explain=explain,
        explanations=[] if explanations is None else explanations,
    )  # fmt: skip
    return PassManager(ctx, check, used, dump_dir=dump_dir).run(module, passes)


def _generated(module: Module, dims: Mapping[str, int] | None, seed: int) -> list[Sample]:
    check_dims(module, dims or {})
    return generate_samples(module, accepts(EvalRunner(module.clone())), dims=dims, seed=seed)


def save(
    module: Module,
    out: str | Path,
    *,
    target: str = "ort-cpu",
    opset: int | None = None,
    force: bool = False,
    plugins: Sequence[Plugin] = (),
) -> Path:
    """Writes a module as one file: `.onnx`, or `.rg` for the text form.

    Large weights go into a file beside it.

    Args:
        module: The module.
        out: The file.
        target: `onnx`, `ort-cpu` or `ort-cuda`.
        opset: Emission opset; default: the source's.
        force: Replace an existing file.
        plugins: Plugins whose emitters write their operators.

    Raises:
        UsageError: When `out` exists and `force` is not set, or the target writes no single file.
    """
    path = Path(out)
    if path.suffix == ".rg":
        save_text(module, path, force=force)
        return path
    if target not in PROFILES:
        raise UsageError(
            f"target `{target}` cannot be saved as one file",
            hint=f"{', '.join(PROFILES)}; folders: `regraft.convert(module, out, target=…)`",
        )
    if not path.suffix:
        raise UsageError(f"`{path}` has no suffix", hint="name a file such as `model.onnx`")
    with staged(path, force=force) as temp:
        families = combine(plugins).onnx_emitters
        save_onnx(module, temp / path.name, profile=target, opset=opset, families=families)
    return path


def convert(
    source: Any,
    out: str | Path | None,
    *,
    target: str = "ort-cpu",
    passes: str | Sequence[Pass | Rule] | None = None,
    samples: Sequence[Mapping[str, Any]] = (),
    plugins: Sequence[Plugin] = (),
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    **options: Any,
) -> ConvertResult:
    """Converts a model: capture, passes, emission, check; the output is whole or absent.

    Args:
        source: A path, `ModelProto`, module, or a PyTorch module with `args`.
        out: A folder, or a file name with a suffix.
        target: `onnx`, `ort-cpu`, `ort-cuda`, `torch`, `hf` or `triton`; the last two write
            folders alone.
        passes: A pipeline string, passes and rules, or None for the target's default.
        samples: Samples to check and calibrate with.
        plugins: Plugins whose passes a pipeline string may name.
        args: Example positional arguments of a PyTorch module.
        kwargs: Its example keyword arguments.
        dynamic_shapes: Its dynamic axes, as `torch.export.export` takes them.
        options: Further fields of `ConvertOptions`.
    """
    if args or kwargs or dynamic_shapes is not None:
        source = Example(source, args, kwargs or {}, dynamic_shapes)
    return _convert(
        source,
        out,
        ConvertOptions(
            target=target, passes=passes, samples=samples, extensions=combine(plugins), **options
        ),
    )


def compare(
    a: Any,
    b: Any,
    *,
    samples: Sequence[Mapping[str, Any]] = (),
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    rtol: float | None = None,
    atol: float | None = None,
    plugins: Sequence[Plugin] = (),
) -> CheckReport:
    """Compares two models on the same samples; `report.ok` says whether they agree.

    `plugins` are those whose operators and importers the models need.

    Raises:
        InputError: When they have different inputs, or the second lacks an output.
        UnsupportedError: When neither ONNX Runtime nor the evaluator can run one of them.
    """
    extensions = combine(plugins)
    return compare_sources(
        open_source(a, extensions), open_source(b, extensions), samples=samples, dims=dims,
        seed=seed, rtol=rtol, atol=atol,
    ).report  # fmt: skip


def measure(
    a: Any,
    b: Any,
    metric: str | Metric,
    data: str | Path | Iterable[Mapping[str, Any]],
    *,
    plugins: Sequence[Plugin] = (),
) -> Quality:
    """Measures what the second model loses against the first on data.

    Args:
        a: The reference: a path, `ModelProto` or module.
        b: The other model, with the same inputs and the output that is measured.
        metric: `embedding`, `kl`, `perplexity` or `accuracy`, with options in braces.
        data: A text, `.npz` files or a folder of images; or batches, arrays by name, that can be
            iterated over more than once.
        plugins: Plugins whose operators and importers the models need.

    Raises:
        InputError: When the models have different inputs, or the data does not fit.
        UsageError: For an unknown metric or option.
    """
    extensions = combine(plugins)
    first, second = open_source(a, extensions), open_source(b, extensions)
    check_inputs(first.module, second.module)
    asked = parse_metric(metric) if isinstance(metric, str) else metric
    runners = make_runner(first), make_runner(second)
    if isinstance(data, str | Path):
        return measure_sources(asked, Path(data), first, second, runners)
    return measure_quality(asked, *runners, data)


__all__ = [
    "CheckReport",
    "ConvertOptions",
    "ConvertResult",
    "apply",
    "compare",
    "convert",
    "load",
    "measure",
    "save",
]
