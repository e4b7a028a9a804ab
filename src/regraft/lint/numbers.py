"""Traps of element types: kernels that a target lacks, and numbers that a type does not hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from regraft.ir.constants import constant_of
from regraft.ir.graph import Node
from regraft.ir.ops import arithmetic, conv, linalg, logical, norm, rnn, softmax
from regraft.ir.opspec import OpSpec, Trait
from regraft.ir.types import DType
from regraft.lint.rule import LintRule, Severity, Subject, name_of

_HEAVY = frozenset(
    {
        linalg.matmul, linalg.gemm, conv.conv, conv.conv_transpose, rnn.lstm, rnn.gru, rnn.rnn,
    }
)  # fmt: skip
_ARITHMETIC = frozenset({arithmetic.add, arithmetic.sub, arithmetic.mul, arithmetic.div,
                         arithmetic.pow_, linalg.matmul})  # fmt: skip
_STATISTICS = frozenset({softmax.softmax, softmax.log_softmax, norm.instance_norm})
_MAX_CONSTANT_BYTES = 1 << 12


def _computing(dtype: DType, ops: frozenset[OpSpec] | None) -> Callable[[Subject], Iterator[str]]:
    """Returns a function that yields the compute nodes whose first result has a type."""

    def places(subject: Subject) -> Iterator[str]:
        for node in subject.module.graph.walk():
            if Trait.CONSTANT in node.op.traits or node.outputs[0].dtype is not dtype:
                continue
            if Trait.DATA_MOVEMENT not in node.op.traits and (ops is None or node.op in ops):
                yield name_of(node)

    return places


def _f64_islands(subject: Subject) -> Iterator[str]:
    declared = {value.dtype for value in subject.module.graph.inputs}
    return iter(()) if DType.F64 in declared else _computing(DType.F64, None)(subject)


def _large_int64(subject: Subject) -> Iterator[str]:
    for node in subject.module.graph.walk():
        value = node.outputs[0]
        if node.op in _ARITHMETIC and value.dtype is DType.I64 and (value.rank or 0) >= 2:
            yield name_of(node)


def _infinite_masks(subject: Subject) -> Iterator[str]:
    for node in subject.module.graph.walk():
        if node.op in (arithmetic.add, arithmetic.mul, logical.where) and _holds_infinity(node):
            yield name_of(node)


def _holds_infinity(node: Node) -> bool:
    """Whether an operand in f16 or bf16 is a constant minus infinity that reaches a softmax."""
    for value in node.inputs:
        if value is None or value.dtype not in (DType.F16, DType.BF16):
            continue
        array = constant_of(value, _MAX_CONSTANT_BYTES)
        if array is not None and np.isneginf(array.astype(np.float32)).any():
            return True
    return False


def _half_statistics(subject: Subject) -> Iterator[str]:
    for node in subject.module.graph.walk():
        if node.op in _STATISTICS and node.outputs[0].dtype in (DType.F16, DType.BF16):
            yield name_of(node)


def _unfolded_norms(subject: Subject) -> Iterator[str]:
    for node in subject.module.graph.walk():
        x = node.inputs[0] if node.op is norm.batch_norm else None
        if x is not None and x.producer is not None and x.producer.op in _HEAVY:
            yield name_of(node)


RULES = (
    LintRule(
        "RG101", "f64-island", "Nodes that compute in f64 in a model whose inputs are not f64.",
        "f64 is at least twice as slow and as large; mostly a Python constant was left over.",
        "cast the constant at export; f32 holds everything that an f32 input says",
        Severity.WARNING, _f64_islands,
    ),
    LintRule(
        "RG102", "large-int64", "Arithmetic on int64 tensors of two axes and more.",
        "64-bit integer kernels are slow, and GPU targets run many of them on the CPU.",
        "use int32 for ids and masks at export",
        Severity.WARNING, _large_int64,
    ),
    LintRule(
        "RG103", "f16-on-cpu", "Matrix products and convolutions in f16 on the CPU.",
        "The CPU provider has no f16 kernels for them: it casts operands to f32 and back at every "
        "call, so that the file is small and the model slow.",
        "run the f32 model on the CPU, or quantize to 8 bits; keep f16 for GPUs and for size",
        Severity.WARNING, _computing(DType.F16, _HEAVY), ("ort-cpu",),
    ),
    LintRule(
        "RG104", "bf16-on-cpu", "Nodes in bf16 on the CPU.",
        "The CPU provider has no bf16 kernels: the model does not load.",
        "`regraft convert SRC -o OUT --dtype fp16` from the f32 model, or `--target ort-cuda`",
        Severity.ERROR, _computing(DType.BF16, None), ("ort-cpu",),
    ),
    LintRule(
        "RG105", "infinite-mask", "Masks of minus infinity in half precision.",
        "A row that is hidden completely becomes NaN in the softmax; converters make such masks "
        "from `finfo(float32).min`.",
        "`regraft convert SRC -o OUT --dtype fp16` from the f32 model keeps masks in f32",
        Severity.WARNING, _infinite_masks,
    ),
    LintRule(
        "RG106", "half-statistics", "Softmax or instance statistics in half precision.",
        "Sums over long axes lose small terms: f16 holds 11 bits.",
        "`regraft convert SRC -o OUT --dtype fp16` from the f32 model keeps them in f32",
        Severity.WARNING, _half_statistics,
    ),
    LintRule(
        "RG107", "unfolded-norm", "Batch normalization behind a convolution or a matrix product.",
        "It costs a pass over the data and folds into the weights without a loss.",
        "`regraft convert SRC -o OUT --passes canonicalize,fold-norms`",
        Severity.WARNING, _unfolded_norms,
    ),
)  # fmt: skip
"""Rules about numbers, in order of their ids."""
