"""The Python surface: load, apply, save, convert, compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regraft.backends.onnx import PROFILES, save_onnx
from regraft.conversion import ConvertOptions, ConvertResult, resolve_passes
from regraft.conversion import convert as _convert
from regraft.ir.errors import UsageError
from regraft.ir.module import Module
from regraft.ir.rewrite import Rule
from regraft.output import staged
from regraft.passes.check.compare import OutputDiff
from regraft.passes.check.module_check import CheckReport, check_module
from regraft.passes.check.runners import EvalRunner
from regraft.passes.check.samples import generate_samples
from regraft.passes.manager import CheckMode, PassManager, PassRecord
from regraft.passes.protocol import Context, Pass
from regraft.samples import bind_samples
from regraft.sources import open_source


def load(source: Any) -> Module:
    """Loads a model as a module.

    Args:
        source: A path to an `.onnx` or `.rg` file or an output folder, or a `ModelProto`.

    Raises:
        InputError: When it cannot be used as it is.
    """
    return open_source(source).module


def apply(
    module: Module,
    passes: str | Sequence[Pass | Rule],
    *,
    samples: Sequence[Mapping[str, Any]] = (),
    check: bool = False,
    seed: int = 0,
) -> list[PassRecord]:
    """Runs passes on a module, in place.

    Args:
        module: The module.
        passes: A pipeline string, or pass objects and rewrite rules.
        samples: Samples for calibration and checks.
        check: Compare outputs after every pass, in the numpy evaluator.
        seed: Seed of everything random.

    Raises:
        CheckError: When a pass broke its contract; the module is as before that pass.
    """
    mode = CheckMode.EACH if check else CheckMode.OFF
    used = bind_samples(module, samples)
    if check and not used:
        runner = EvalRunner(module.clone())
        used = generate_samples(module, lambda inputs: bool(runner(inputs)) or True, seed=seed)
    manager = PassManager(Context(seed=seed, samples=samples), mode, used)
    return manager.run(module, resolve_passes(passes))


def save(
    module: Module,
    out: str | Path,
    *,
    target: str = "ort-cpu",
    opset: int | None = None,
    force: bool = False,
) -> Path:
    """Writes a module as one model file (with external data beside it when large).

    Raises:
        UsageError: When `out` exists and `force` is not set, or the target writes no single file.
    """
    if target not in PROFILES:
        raise UsageError(f"target `{target}` cannot be saved as one file", hint=", ".join(PROFILES))
    path = Path(out)
    if not path.suffix:
        raise UsageError(f"`{path}` has no suffix", hint="name a file such as `model.onnx`")
    with staged(path, force=force) as temp:
        save_onnx(module, temp / path.name, profile=target, opset=opset)
    return path


def convert(
    source: Any,
    out: str | Path | None,
    *,
    target: str = "ort-cpu",
    passes: str | Sequence[Pass] | None = None,
    samples: Sequence[Mapping[str, Any]] = (),
    **options: Any,
) -> ConvertResult:
    """Converts a model: capture, passes, emission, check; the output is whole or absent.

    Args:
        source: A path, `ModelProto` or module.
        out: A folder, or a file name with a suffix.
        target: `onnx`, `ort-cpu` or `ort-cuda`.
        passes: A pipeline string, pass objects, or None for the target's default.
        samples: Samples to check and calibrate with.
        options: Further fields of `ConvertOptions`.
    """
    return _convert(
        source, out, ConvertOptions(target=target, passes=passes, samples=samples, **options)
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
) -> CheckReport:
    """Compares two models on the same samples; `report.ok` says whether they agree.

    Raises:
        UnsupportedError: When neither ONNX Runtime nor the evaluator can run one of them.
    """
    from regraft.comparison import compare_sources

    return compare_sources(
        open_source(a), open_source(b), samples=samples, dims=dims, seed=seed, rtol=rtol, atol=atol
    )


__all__ = [
    "CheckReport",
    "ConvertOptions",
    "ConvertResult",
    "OutputDiff",
    "apply",
    "check_module",
    "compare",
    "convert",
    "load",
    "save",
]
