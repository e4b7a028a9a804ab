"""Weights as integers: round to nearest, in ranges that may be searched.

Matrices are f32[K, N] throughout: K is the axis that the product sums over, N the outputs. Groups
are runs of `group` positions of K, the last one shorter where K is no multiple.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from regraft.passes.quantization.formats import INT8, Format, nearest, values_of

Array = np.ndarray[Any, Any]

_E4M3_TOP = 448.0

_TINY = np.finfo(np.float32).tiny

_AT_ONCE = 1 << 22
"""Numbers of a matrix that are rounded, or judged, at a time: several arrays of that many, in f32,
stand beside it, and beside the second moments of the widest layers."""

_ROWS = 4096
"""Rows of a table that are rounded at a time: tables of words are the largest weights."""

_SHRINKS = np.linspace(1.0, 0.5, 26)
"""Fractions of a range that the search tries: below a half no weight distribution gains."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Scales and zero points of a matrix [K, N].

    Args:
        format: The integers.
        scale: f32[G, N], one row per group.
        zero_point: f32[G, N] of whole numbers, None where the format is symmetric.
        group: Positions of K in a group.
    """

    format: Format
    scale: Array
    zero_point: Array | None
    group: int

    def row(self, position: int) -> tuple[Array, Array | float]:
        """Returns scale and zero point, f32[N], of one position of K."""
        idx = position // self.group
        return self.scale[idx], 0.0 if self.zero_point is None else self.zero_point[idx]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A matrix as integers.

    Args:
        grid: Scales and zero points.
        codes: i8 or u8[K, N], in the range of the format.
    """

    grid: Grid
    codes: Array

    @property
    def num_bytes(self) -> int:
        """Packed size of codes, scales and zero points."""
        fmt, scale = self.grid.format, self.grid.scale
        zeros = 0 if self.grid.zero_point is None else fmt.dtype.nbytes(scale.size)
        stored = 4 * scale.size if fmt.scales == "f32" else scale.size
        return fmt.dtype.nbytes(self.codes.size) + stored + zeros

    def decode(self) -> Array:
        """Returns f32[K, N]."""
        size, grid = self.codes.shape[0], self.grid
        blocks = grouped(values_of(grid.format, self.codes), grid.group)
        if grid.zero_point is not None:
            blocks -= grid.zero_point[:, None]
        blocks *= grid.scale[:, None]
        decoded: Array = blocks.reshape(-1, self.codes.shape[1])[:size]
        return decoded


def outputs_of(encoded: Encoded, columns: Array | slice) -> Encoded:
    """Returns some outputs of an encoded matrix."""
    grid = encoded.grid
    zero = None if grid.zero_point is None else grid.zero_point[:, columns]
    part = Grid(grid.format, grid.scale[:, columns], zero, grid.group)
    return Encoded(part, encoded.codes[:, columns])


def joined(parts: Sequence[Encoded]) -> Encoded:
    """Returns encoded matrices side by side."""
    grid = parts[0].grid
    zeros = [part.grid.zero_point for part in parts if part.grid.zero_point is not None]
    scale = np.concatenate([part.grid.scale for part in parts], 1)
    whole = Grid(grid.format, scale, np.concatenate(zeros, 1) if zeros else None, grid.group)
    return Encoded(whole, np.concatenate([part.codes for part in parts], 1))


def runs_of_outputs(shape: tuple[int, ...]) -> list[slice]:
    """Returns the outputs of a matrix [K, N] in runs that take little memory."""
    step = max(_AT_ONCE // max(shape[0], 1), 1)
    return [slice(first, min(first + step, shape[1])) for first in range(0, shape[1], step)]


def grouped(matrix: Array, group: int) -> Array:
    """Returns [K, N] as [G, group, N], the last group filled up with zeros."""
    size, width = matrix.shape
    missing = -size % group
    if missing:
        matrix = np.concatenate([matrix, np.zeros((missing, width), matrix.dtype)])
    return matrix.reshape(-1, group, width)


def grid_of(matrix: Array, fmt: Format, group: int, shrink: Array | float = 1.0) -> Grid:
    """Returns the grid that spans the values of every group.

    Args:
        matrix: f32[K, N].
        fmt: The integers.
        group: Positions of K that share a scale.
        shrink: Fraction of the range that is kept; a number or f32[G, N].
    """
    return _grid(fmt, _spans(grouped(matrix, group), fmt), group, shrink)


def _spans(blocks: Array, fmt: Format) -> tuple[Array, Array]:
    """Returns the least and the largest value of every group, f32[G, N], with 0 between them."""
    low: Array = np.minimum(blocks.min(1), 0)
    high: Array = np.maximum(blocks.max(1), 0)
    return (low, np.maximum(high, -low)) if fmt.symmetric else (low, high)


def _grid(fmt: Format, spans: tuple[Array, Array], group: int, shrink: Array | float = 1.0) -> Grid:
    low, high = (each * shrink for each in spans)
    if fmt.symmetric:
        return Grid(fmt, _stored_scale(fmt, high), None, group)
    scale = _positive((high - low) / (fmt.high - fmt.low))
    zero = np.clip(np.rint(fmt.low - low / scale), fmt.low, fmt.high).astype(np.float32)
    return Grid(fmt, scale, zero, group)


def _stored_scale(fmt: Format, top: Array) -> Array:
    """Returns scales that bring `top` to the largest code, as the format stores them."""
    if fmt.scales == "e8m0":
        # OCP MX: the exponent of the largest number less that of the largest value, rounded down
        exponent = np.floor(np.log2(np.maximum(top, _TINY))) - np.floor(np.log2(fmt.top))
        return np.asarray(np.exp2(np.clip(exponent, -126, 127)), np.float32)
    scale = _positive(top / fmt.top)
    if fmt.scales == "e4m3":
        whole = np.float32(max(float(top.max()) / (_E4M3_TOP * fmt.top), float(_TINY)))
        small = (scale / whole).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        # a block below the least number of the type would get the scale 0
        return np.asarray(np.maximum(small, np.float32(2.0**-9)) * whole)
    return scale


def _positive(steps: Array) -> Array:
    """Returns f32 steps, the least number instead of 0: where all values are 0 any step will do."""
    positive: Array = np.maximum(steps, _TINY).astype(np.float32)
    return positive


def round_to(matrix: Array, grid: Grid) -> Encoded:
    """Returns every value as the nearest code of the grid, halves to even."""
    size = matrix.shape[0]
    blocks: Array = grouped(matrix, grid.group) / grid.scale[:, None]
    zero = 0.0 if grid.zero_point is None else grid.zero_point[:, None]
    codes = nearest(grid.format, blocks, zero)
    return Encoded(grid, codes.reshape(-1, matrix.shape[1])[:size])


def searched_grid(matrix: Array, fmt: Format, group: int, importance: Array | None = None) -> Grid:
    """Returns the grid of least squared error among shrunk ranges, per group and output.

    Args:
        matrix: f32[K, N].
        fmt: The integers.
        group: Positions of K that share a scale.
        importance: f64[K], the mean square of what each position is multiplied by; equal when None.
    """
    blocks = grouped(matrix, group)
    if fmt.scales == "e8m0":  # a shrunk range is half the range, or the same
        return grid_of(matrix, fmt, group)
    weights = None if importance is None else _relative(importance, group)
    spans = _spans(blocks, fmt)
    best = np.full(blocks.shape[::2], np.inf, np.float32)
    shrink = np.ones(blocks.shape[::2], np.float32)
    scratch = np.empty_like(blocks), np.empty_like(blocks)
    for each in _SHRINKS:
        loss = _loss(blocks, _grid(fmt, spans, group, each), weights, scratch)
        better = loss < best
        best[better], shrink[better] = loss[better], each
    return _grid(fmt, spans, group, shrink)


def _relative(importance: Array, group: int) -> Array:
    """Returns f32[G, group, 1] of mean 1 from f64[K], the last group filled up with zeros."""
    wide = np.asarray(importance, np.float64)
    return grouped((wide / max(float(wide.mean()), float(_TINY)))[:, None], group).astype(
        np.float32
    )


def _loss(blocks: Array, grid: Grid, weights: Array | None, scratch: tuple[Array, Array]) -> Array:
    """Returns the squared error f32[G, N] of groups rounded to a grid, weighted or not."""
    fmt, scale = grid.format, grid.scale
    scaled, off = scratch
    np.divide(blocks, scale[:, None], out=scaled)
    if fmt.is_integer:
        np.rint(scaled, out=off)
        if grid.zero_point is None:
            np.clip(off, fmt.low, fmt.high, out=off)
        else:  # np.clip takes several times as long where its bounds are arrays
            np.maximum(off, (fmt.low - grid.zero_point)[:, None], out=off)
            np.minimum(off, (fmt.high - grid.zero_point)[:, None], out=off)
    else:
        off[...] = values_of(fmt, nearest(fmt, scaled))
    off -= scaled
    np.multiply(off, off, out=off)
    if weights is not None:
        off *= weights
    lost: Array = off.sum(1)
    lost *= np.square(scale)
    return lost


def rounded_rows(table: Array) -> tuple[Array, Array]:
    """Returns i8[V, D] and f32[V]: every row in its own symmetric range, some rows at a time."""
    codes = np.empty(table.shape, np.int8)
    scale = np.empty(table.shape[0], np.float32)
    for first in range(0, len(table), _ROWS):
        part = np.asarray(table[first : first + _ROWS], np.float32).T
        encoded = round_to(part, grid_of(part, INT8, part.shape[0]))
        codes[first : first + _ROWS] = encoded.codes.T
        scale[first : first + _ROWS] = encoded.grid.scale[0]
    return codes, scale
