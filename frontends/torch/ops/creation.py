"""Importers of tensors made from sizes and numbers."""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np

from regraft.frontends.torch.call import CallImport, Import, Importer, UnsupportedCallError, row
from regraft.frontends.torch.ops.repeat import expanded, positions
from regraft.ir.dims import Dim
from regraft.ir.graph import Value
from regraft.ir.ops import logical
from regraft.ir.ops.fill import constant_of_shape, range_
from regraft.ir.ops.reshaping import unsqueeze
from regraft.ir.types import DType


def _filled(c: CallImport, number: complex) -> Value:
    if not c.shape:
        return c.number(number, c.dtype)
    with np.errstate(over="ignore"):
        value = np.asarray([number]).astype(c.dtype.numpy)
    return c.b.op(constant_of_shape, shape=c.shape, value=value)


def _constant(number: int) -> Importer:
    return lambda c: _filled(c, number)


def _full(c: CallImport) -> Value:
    value = c.args["fill_value"]
    if isinstance(value, Dim | Value):
        return expanded(c, c.operand("fill_value"), c.shape)
    return _filled(c, value)


def _scalar(c: CallImport) -> Value:
    return c.operand("s")


def _computed_in(dtype: DType) -> np.dtype[Any]:
    """Returns the element type in which PyTorch counts."""
    return np.dtype(np.float64 if dtype is DType.F64 or dtype.is_integer else np.float32)


def _arange(c: CallImport) -> Value:
    start, end, step = c.args.get("start", 0), c.args["end"], c.args.get("step", 1)
    if all(
        isinstance(item, int | Dim) and not isinstance(item, bool) for item in (start, end, step)
    ):
        whole = c.dtype if c.dtype.is_integer else DType.I64
        counted = c.b.op(range_, start=start, limit=end, delta=step, dtype=whole)
        return c.cast(counted, c.dtype)
    if any(isinstance(item, Dim | Value) for item in (start, end, step)):
        return _arange_of_values(c)
    count = max(0, ceil((end - start) / step))
    wide = _computed_in(c.dtype)
    first, by = np.asarray(start, wide), np.asarray(step, wide)
    array = first + np.arange(count).astype(wide) * by
    return c.b.constant(array, c.dtype, name="arange")


def _arange_of_values(c: CallImport) -> Value:
    values = [
        c.operand(name) if name in c.args else c.number(default, c.dtype)
        for name, default in (("start", 0), ("end", 0), ("step", 1))
    ]
    return c.b.op(range_, *values)


def _linspace(c: CallImport) -> Value:
    start, end, steps = c.args["start"], c.args["end"], c.args["steps"]
    if not all(isinstance(item, int | float) for item in (start, end, steps)):
        raise UnsupportedCallError("bounds that run time knows")
    wide = _computed_in(c.dtype)
    first, last = np.asarray(start, wide), np.asarray(end, wide)
    index = np.arange(steps).astype(wide)
    step = (last - first) / np.asarray(max(steps - 1, 1), wide)
    # counted from the nearer end, so that both ends are exact
    front, back = first + step * index, last - step * index[::-1]
    array = front if steps == 1 else np.where(index < steps // 2, front, back)
    return c.b.constant(array, c.dtype, name="linspace")


def _eye(c: CallImport) -> Value:
    rows, columns = c.shape
    if isinstance(rows, int) and isinstance(columns, int):
        return c.b.constant(np.eye(rows, columns), c.dtype, name="eye")
    line = c.b.op(unsqueeze, positions(c, rows), axes=(1,))
    return c.cast(c.b.op(logical.equal, line, positions(c, columns)), c.dtype)


def _triangle_positions(*, upper: bool) -> Importer:
    def run(c: CallImport) -> Value:
        rows, columns = c.args["row"], c.args["col"]
        if isinstance(rows, Dim) or isinstance(columns, Dim):
            raise UnsupportedCallError("positions in a triangle of symbolic size")
        find = np.triu_indices if upper else np.tril_indices
        return c.b.constant(np.stack(find(rows, c.args["offset"], columns)), c.dtype)

    return run


def _window(coefficients: tuple[float, ...]) -> Importer:
    """Returns an importer of a cosine window: sum over k of (-1)^k a_k cos(2 pi k n / N)."""

    def run(c: CallImport) -> Value:
        length = c.args["window_length"]
        if isinstance(length, Dim):
            raise UnsupportedCallError("a window of symbolic length")
        if length < 2:
            return c.b.constant(np.ones(length), c.dtype)
        span = length if c.args.get("periodic", True) else length - 1
        phase = 2 * np.pi * np.arange(length) / span
        array = sum((-1) ** k * a * np.cos(k * phase) for k, a in enumerate(coefficients))
        return c.b.constant(np.asarray(array), c.dtype, name="window")

    return run


IMPORTS: tuple[Import, ...] = (
    row(
        _constant(0), "aten.zeros.default", "aten.zeros_like.default", "aten.new_zeros.default",
        "aten.empty.memory_format", "aten.empty_like.default", "aten.new_empty.default",
        "aten.empty_strided.default", "aten.new_empty_strided.default",
        "aten.empty_permuted.default",
    ),
    row(_constant(1), "aten.ones.default", "aten.ones_like.default", "aten.new_ones.default"),
    row(_full, "aten.full.default", "aten.full_like.default", "aten.new_full.default"),
    row(_scalar, "aten.scalar_tensor.default"),
    row(_arange, "aten.arange.default", "aten.arange.start", "aten.arange.start_step"),
    row(_linspace, "aten.linspace.default"),
    row(_eye, "aten.eye.default", "aten.eye.m"),
    row(_triangle_positions(upper=False), "aten.tril_indices.default"),
    row(_triangle_positions(upper=True), "aten.triu_indices.default"),
    row(_window((0.5, 0.5)), "aten.hann_window.default", "aten.hann_window.periodic"),
    row(_window((0.54, 0.46)), "aten.hamming_window.default", "aten.hamming_window.periodic"),
    row(
        _window((0.42, 0.5, 0.08)), "aten.blackman_window.default",
        "aten.blackman_window.periodic",
    ),
)  # fmt: skip
