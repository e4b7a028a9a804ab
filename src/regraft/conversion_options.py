"""What `convert` is told, and what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regraft.ir.errors import UsageError
from regraft.ir.module import Module
from regraft.ir.rewrite import Rule
from regraft.metrics import Asked
from regraft.passes.check.module_check import CheckReport
from regraft.passes.manager import CheckMode, PassRecord
from regraft.passes.protocol import Pass
from regraft.passes.recovery.data import Data
from regraft.plugins import Extensions, combine


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """Options of `convert`; see INTERFACE.

    Args:
        target: `onnx`, `ort-cpu`, `ort-cuda`, `torch`, `hf` or `triton`.
        passes: Pipeline string, pass objects, or None for the target's default.
        opset: Emission opset, or None to keep the source's.
        freeze: Symbols to fix by name.
        dims: Sizes of generated samples; never freezes.
        samples: Samples to check with, and to calibrate with where `calibrate` is empty.
        inputs: A `.npz` file or a folder of them in place of `samples`, recorded for `rerun`.
        calibrate: Samples that passes measure on, or a path: `.npz`, a text, a folder of images.
        tokenizer: A `tokenizer.json` for texts, or its folder; default: the one beside the source.
        train: Data that passes train on: a path (`.npz`, text, a folder of either) or batches;
            default: the samples that they measure on.
        checkpoints: Folder for checkpoints of training, from which an interrupted run resumes.
        check: When outputs are compared.
        rtol: Overrides the relative tolerance.
        atol: Adds an absolute tolerance.
        max_memory_bytes: Working-memory budget.
        seed: Seed of everything random.
        force: Replace an existing output.
        dry_run: Do everything except writing the output.
        dtype: `fp32`, `fp16` or `bf16`: adds the pass `cast`.
        quality: What is measured of source and result, and how much may be lost; else exit 4.
        extensions: Passes and operators, those of plugins among them; default: regraft's own.
        explain: Rule whose near misses are wanted.
        replay: Recorded decisions by name of the pass, which passes take again.
        bench: Measure the latency of source and result, interleaved.
        plugins: Where `extensions` come from (`FILE.py:NAME` or the name of an installed one),
            recorded for `rerun`.
        aot: GPUs that the kernels of a package are compiled for (`sm_90`, `sm_80`, `gfx942`).

    Paths and `check` may be given as text.

    Raises:
        UsageError: For an unknown `check`.
    """

    target: str = "ort-cpu"
    passes: str | Sequence[Pass | Rule] | None = None
    opset: int | None = None
    freeze: Mapping[str, int] = field(default_factory=dict)
    dims: Mapping[str, int] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()
    inputs: Path | None = None
    calibrate: Path | Sequence[Mapping[str, Any]] = ()
    tokenizer: Path | None = None
    train: Path | Data | None = None
    checkpoints: Path | None = None
    check: CheckMode = CheckMode.MODULE
    rtol: float | None = None
    atol: float | None = None
    max_memory_bytes: int | None = None
    seed: int = 0
    force: bool = False
    dry_run: bool = False
    dtype: str | None = None
    quality: Asked | None = None
    extensions: Extensions = field(default_factory=lambda: combine(()))
    explain: str | None = None
    replay: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    plugins: Sequence[str] = ()
    bench: bool = False
    aot: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("inputs", "calibrate", "tokenizer", "train", "checkpoints"):
            given = getattr(self, name)
            if isinstance(given, str):
                object.__setattr__(self, name, Path(given))
        object.__setattr__(self, "check", check_mode(self.check))


def check_mode(given: CheckMode | str | bool) -> CheckMode:
    """Returns what is compared, by its name; `False` is off.

    Raises:
        UsageError: For an unknown one.
    """
    if given is False:
        return CheckMode.OFF
    try:
        return CheckMode(given)
    except ValueError:
        modes = ", ".join(mode.value for mode in CheckMode)
        raise UsageError(f"unknown check `{given}`", hint=f"one of {modes}") from None


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
