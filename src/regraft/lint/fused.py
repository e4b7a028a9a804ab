"""Traps of quantized files that only ONNX Runtime's own rewrites show."""

from __future__ import annotations

from collections.abc import Iterator

from regraft.lint.quantized import FIX
from regraft.lint.rule import LintRule, Severity, Subject

_ORT_CPU = ("ort-cpu",)
_MIN_WEIGHTS = 4096
_INTEGER_LEVEL = 4
_QUANTIZED = frozenset({"DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QLinearMatMul",
                        "QAttention", "MatMulInteger"})  # fmt: skip
_SKIP_NORM = "SkipLayerNormalization"
_NBITS = "MatMulNBits"


def _every_run(subject: Subject) -> Iterator[str]:
    for kernel in subject.kernels:
        if kernel.op_type == "DequantizeLinear" and kernel.stored[0] >= _MIN_WEIGHTS:
            yield f"DequantizeLinear `{kernel.name}` of {kernel.stored[0]} weights"


def _no_level(subject: Subject) -> Iterator[str]:
    for kernel in subject.written:
        if kernel.op_type == _NBITS and not kernel.attrs.get("accuracy_level", 0):
            yield f"MatMulNBits `{kernel.name}`"


def _silent(subject: Subject) -> Iterator[str]:
    written = {kernel.op_type for kernel in subject.written}
    for kernel in subject.kernels if _NBITS not in written else ():
        level = kernel.attrs.get("accuracy_level", 0)
        if kernel.op_type == _NBITS and level == _INTEGER_LEVEL:
            yield f"MatMulNBits `{kernel.name}`"


def _skip_norms(subject: Subject) -> Iterator[str]:
    kernels = subject.kernels
    if any(kernel.op_type in _QUANTIZED for kernel in kernels):
        for kernel in kernels:
            if kernel.op_type == _SKIP_NORM:
                yield f"SkipLayerNormalization `{kernel.name}`"


def _refused(subject: Subject) -> Iterator[str]:
    if subject.refusal:
        yield subject.refusal


RULES = (
    LintRule(
        "RG221", "dequantized-every-run", "Weights that are dequantized on every run.",
        "The runtime found no kernel for the pattern around them, so that the file is small and "
        "the model up to ten times slower than in float.",
        f"{FIX} writes forms that have kernels",
        Severity.WARNING, _every_run, _ORT_CPU,
    ),
    LintRule(
        "RG222", "no-accuracy-level", "MatMulNBits without `accuracy_level`.",
        "Its products are then in float: 2 to 12 times slower than the 8-bit ones of level 4.",
        f"{FIX} states level 4",
        Severity.WARNING, _no_level, _ORT_CPU,
    ),
    LintRule(
        "RG223", "silent-rounding", "Weight-only layers whose inputs are rounded all the same.",
        "ONNX Runtime rewrites DequantizeLinear and MatMul to MatMulNBits of level 4, which "
        "rounds inputs to 8 bits; the file does not say so.",
        f"{FIX} states the kernel in the file",
        Severity.WARNING, _silent, _ORT_CPU,
    ),
    LintRule(
        "RG224", "slow-skip-norm", "SkipLayerNormalization in a quantized model.",
        "The kernel takes four times as long as Add and LayerNormalization, and ONNX Runtime "
        "makes it of them: 5 to 9 % of an 8-bit encoder.",
        "run with `disabled_optimizers=['SkipLayerNormFusion']`",
        Severity.WARNING, _skip_norms, _ORT_CPU,
    ),
    LintRule(
        "RG225", "refused", "A quantized file that ONNX Runtime does not load.",
        "It has no kernel for a type, or the file breaks a rule of the format.",
        f"{FIX} writes forms that have kernels",
        Severity.ERROR, _refused, _ORT_CPU,
    ),
)  # fmt: skip
"""Rules about what the runtime makes of a file, in order of their ids."""
