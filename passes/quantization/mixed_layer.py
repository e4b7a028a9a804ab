"""A linear layer in few bits, in 8, and in both: what each form of it loses and takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from regraft.passes.calibration.curvature import Curvature, curvature
from regraft.passes.calibration.statistics import Statistics
from regraft.passes.protocol import LayerError
from regraft.passes.quantization.encoding import Encoded, outputs_of
from regraft.passes.quantization.formats import UINT8, Format
from regraft.passes.quantization.methods import Method, encode
from regraft.passes.quantization.sites import Linear
from regraft.passes.quantization.split_inputs import (
    INPUT_STEP,
    SplitInputs,
    input_order,
    split_inputs,
)

Array = np.ndarray[Any, Any]
Split = Literal["none", "outputs", "inputs"]

HIGH = UINT8
SHARES = (0.0625, 0.125, 0.25, 0.5)
"""Shares of a layer in 8 bits that are looked at, beside nothing and all of it."""
_ROW_STEP = 32
"""Outputs that change format together: kernels work on as many at once."""
_INDEX_BYTES = 8


@dataclass(frozen=True, slots=True)
class Form:
    """How much of a layer is in 8 bits.

    Args:
        split: Whether outputs or inputs are; `none` where it is all or nothing.
        share: Of the outputs or inputs, 0 to 1.
    """

    split: Split
    share: float


LOW, ALL_HIGH = Form("none", 0.0), Form("none", 1.0)


@dataclass(frozen=True, slots=True)
class Formats:
    """What layers are encoded in.

    Args:
        low: The format of few bits.
        group: Inputs that share a scale.
        method: How codes are found.
    """

    low: Format
    group: int
    method: Method


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of the input of a layer.

    Args:
        stats: Of the samples that codes are found on, with second moments for `gptq`.
        held: Of samples that no code was found on, with second moments; errors are theirs.
        curved: Of `stats`, where it has second moments.
        order: Inputs in the order in which they are put in 8 bits; none where none are.
    """

    stats: Statistics
    held: Statistics
    curved: Curvature | None
    order: Array


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A linear layer in its forms.

    Args:
        site: The layer.
        low: Its weight in few bits.
        high: Its weight in 8 bits.
        pieces: With some inputs in 8 bits, by their share.
        ranking: i64[N], outputs, those first whose errors in few bits count most.
        follows: Whether it is known what makes errors of outputs count.
        shifts: f32[N], what the mean of the results loses: of `low`, `high` and of `pieces`.
        losses: By form, mean square of the error of the results, each output as it counts; `none`
            and `inputs` alone.
        errors: By form, relative error of the results.
    """

    site: Linear
    low: Encoded
    high: Encoded
    pieces: Mapping[float, SplitInputs]
    ranking: Array
    follows: bool
    shifts: Mapping[Form, Array]
    losses: Mapping[Form, float]
    errors: Mapping[Form, float]

    @property
    def num_codes(self) -> int:
        """Numbers of its weight."""
        return int(self.low.codes.size)

    @property
    def forms(self) -> list[Form]:
        """All forms, by falling savings."""
        parts = [Form("outputs", share) for share in SHARES if self.rows(share).any()]
        return [LOW, *parts, *(Form("inputs", share) for share in self.pieces), ALL_HIGH]

    def rows(self, share: float) -> Array:
        """Returns which outputs are in 8 bits when a share of them is, bool[N]."""
        size = len(self.ranking)
        count = size if share >= 1 else min(round(share * size / _ROW_STEP) * _ROW_STEP, size)
        mask = np.zeros(size, bool)
        mask[self.ranking[:count]] = True
        return mask

    def part(self, form: Form) -> float:
        """Returns the share of its codes in 8 bits."""
        match form.split:
            case "none":
                return form.share
            case "outputs":
                return float(self.rows(form.share).mean())
            case "inputs":
                return float(self.pieces[form.share].chosen.mean())

    def num_bits(self, form: Form) -> float:
        """Returns the bits of its codes."""
        low = self.low.grid.format.bits
        return self.num_codes * (low + self.part(form) * (HIGH.bits - low))

    def num_bytes(self, form: Form) -> int:
        """Returns the size of codes, scales, and indices of what is in which format."""
        match form.split:
            case "none":
                return (self.high if form.share else self.low).num_bytes
            case "outputs":
                rows = self.rows(form.share)
                parts = outputs_of(self.low, ~rows), outputs_of(self.high, rows)
                return sum(part.num_bytes for part in parts) + _INDEX_BYTES * len(rows)
            case "inputs":
                piece = self.pieces[form.share]
                return piece.low.num_bytes + piece.high.num_bytes + _INDEX_BYTES * len(piece.chosen)

    def shift(self, form: Form) -> Array:
        """Returns what is added to the results, f32[N]."""
        if form.split != "outputs":
            return self.shifts[form]
        return np.where(self.rows(form.share), self.shifts[ALL_HIGH], self.shifts[LOW])

    def report(self, form: Form) -> LayerError:
        """Returns what rounding costs it, and its size."""
        part = self.part(form)
        if form.split == "outputs":
            low, high = self.errors[LOW], self.errors[ALL_HIGH]
            error = float(np.sqrt(part * high**2 + (1 - part) * low**2))
        else:
            error = self.errors[form]
        names = self.low.grid.format.name, HIGH.name
        word = names[1] if part == 1 else names[0]
        if 0 < part < 1:
            word = f"{names[0]}, {part:.0%} of {form.split} {names[1]}"
        size = self.num_bytes(form)
        return LayerError(self.site.name, word, error, True, size, 4 * self.num_codes)


def seen_input(stats: Statistics, held: Statistics, *, with_inputs: bool) -> Seen:
    """Returns what is known of an input; with `with_inputs` some may go in 8 bits."""
    curved = None if stats.moments is None else curvature(stats.spread)
    size = len(stats.total)
    if curved is None or not with_inputs:
        return Seen(stats, held, curved, np.zeros(0, np.int64))
    return Seen(stats, held, curved, input_order(curved, round(max(SHARES) * size)))


def encoded_layer(site: Linear, formats: Formats, seen: Seen, gains: Array | None = None) -> Layer:
    """Returns a layer in its forms, on the inputs of the float module.

    Args:
        site: The layer.
        formats: What it is encoded in.
        seen: Of its input.
        gains: f64[N], how much an error of each output counts, None where that is not known.
    """
    matrix = site.matrix()
    low = encode(matrix, formats.low, formats.group, formats.method, seen.stats, seen.curved)
    high = encode(matrix, HIGH, formats.group, "round", seen.stats)
    pieces = _pieces(matrix, formats, seen)
    decoded = {LOW: low.decode(), ALL_HIGH: high.decode()}
    decoded |= {Form("inputs", share): piece.decode() for share, piece in pieces.items()}
    weight = np.ones(matrix.shape[1]) if gains is None else gains
    whole = float(_squares(matrix, seen.held, None).sum()) or 1.0
    shifts, rows = {}, {}
    for form, found in decoded.items():
        lost = matrix - found
        shifts[form] = (seen.stats.mean @ lost).astype(np.float32)
        rows[form] = _squares(lost, seen.held, shifts[form])
    ranking = np.argsort(-np.maximum(rows[LOW] - rows[ALL_HIGH], 0) * weight, kind="stable")
    return Layer(
        site, low, high, pieces, ranking, gains is not None, shifts,
        {form: float(row @ weight) for form, row in rows.items()},
        {form: float(np.sqrt(row.sum() / whole)) for form, row in rows.items()},
    )  # fmt: skip


def _pieces(matrix: Array, formats: Formats, seen: Seen) -> dict[float, SplitInputs]:
    found: dict[float, SplitInputs] = {}
    if seen.curved is None or not len(seen.order):
        return found
    for share in SHARES:
        count = round(share * len(matrix) / INPUT_STEP) * INPUT_STEP
        if not 0 < count < len(matrix) or any(count == p.chosen.sum() for p in found.values()):
            continue
        chosen = np.zeros(len(matrix), bool)
        chosen[seen.order[:count]] = True
        found[share] = split_inputs(matrix, chosen, (formats.low, HIGH), formats.group, seen.curved)
    return found


def _squares(lost: Array, held: Statistics, shift: Array | None) -> Array:
    """Returns the mean square of what each output loses beyond a shift, f64[N]."""
    rows = max(held.rows, 1)
    if held.moments is None:
        raise AssertionError("errors need second moments")
    wide = held.moments.astype(np.float32) @ lost
    found: Array = np.einsum("kn,kn->n", lost, wide, dtype=np.float64) / rows
    if shift is not None:
        found = found - 2 * shift * (held.mean @ lost) + np.square(shift, dtype=np.float64)
    return np.maximum(found, 0)


def report(layers: Sequence[Layer], forms: Mapping[str, Form]) -> list[LayerError]:
    """Returns what rounding costs layers, the worst first."""
    found = [layer.report(forms[layer.site.name]) for layer in layers]
    return sorted(found, key=lambda each: (-each.error, each.name))
