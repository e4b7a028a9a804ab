"""Codes for what a softmax gives: many numbers near 0, a few near 1, all of them positive.

Each quantizer maps x in [0, 1] to `2 ** bits` codes and back:

- `log2`: q = round(-log2(x / s)), x = s 2^-q; a shift.
- `log_sqrt2`: q = round(-2 log2(x / s)), x = s 2^-ceil(q / 2) (1 + (q mod 2) (sqrt(2) - 1)): a
  shift with a scale by the parity of q, half the step. Li et al., RepQ-ViT, 2023, eq. 14-15.
- `shift_log2`: u = log2(x + eta) in equal steps, x = 2^u - eta: the shift eta keeps codes from
  numbers that count for nothing, and the code taken is that of the nearest value. Zhong et al.,
  I&S-ViT, 2023, eq. 6-8. In the paper u is rounded to whole numbers too, so that powers are shifts
  (`whole_powers`): on trained models no better than `log2`, where the powers as they are have a
  tenth to a half of its error. A table of `2 ** bits` values is as cheap as shifts.
- `tangent`: g(x) = tan(a x) / tan(a) in equal steps: more levels near 1. After Yang et al.,
  DopQ-ViT, 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from regraft.ir.errors import UsageError

Array = np.ndarray[Any, Any]

Kind = Literal["log2", "log_sqrt2", "shift_log2", "tangent"]

ETAS = (
    0.001,
    0.002,
    0.005,
    0.01,
    0.015,
    0.02,
    0.03,
    0.04,
    0.05,
    0.07,
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    1.0,
)
_PERCENTILES = (1.0, 0.99999, 0.9999, 0.9995, 0.999, 0.997, 0.99)
_LOWS = (0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.7)
"""Shares of the numbers below the least value of `shift_log2`."""
_ANGLES = tuple(np.linspace(0.05, 1.5, 30))
_WIDEST = 1.55
"""Below a quarter of a turn, where the tangent ends."""
_TINY = 1e-30
_STRIDES = (0.2, 0.1, 0.05, 0.02)
"""Relative steps of the descent from the best candidate."""
_ROUNDS = 16
"""Descents in steps of one size, at most."""
_STARTS = 3
"""Shifts from whose best candidates a descent begins: errors have several valleys."""


@dataclass(frozen=True, slots=True)
class SoftmaxCodes:
    """A quantizer with its parameters.

    Args:
        kind: Which one.
        bits: Of a code.
        scale: s of `log2` and `log_sqrt2`; the largest x of the others.
        eta: Of `shift_log2`.
        angle: a of `tangent`.
        low: Least u of `shift_log2`.
        whole_powers: Whether `shift_log2` gives powers of two less eta.
    """

    kind: Kind
    bits: int
    scale: float = 1.0
    eta: float = 0.0
    angle: float = 1.0
    low: float = 0.0
    whole_powers: bool = False

    def codes(self, x: Array) -> Array:
        """Returns whole numbers from 0 to `2 ** bits - 1`, f64 of the shape of x."""
        top = 2**self.bits - 1
        match self.kind:
            case "log2" | "log_sqrt2":
                steps = 1 if self.kind == "log2" else 2
                exponent = -steps * np.log2(np.maximum(x, _TINY) / self.scale)
                return np.asarray(np.clip(np.rint(exponent), 0, top))
            case "shift_log2":
                power = np.log2(np.minimum(x, self.scale) + self.eta)
                return np.clip(np.rint((power - self.low) / self.step - self.late), 0, top)
            case "tangent":
                warped = np.tan(self.angle * np.minimum(x, self.scale)) / np.tan(self.angle)
                end = np.tan(self.angle * self.scale) / np.tan(self.angle)
                return np.asarray(np.clip(np.rint(warped / end * top), 0, top))

    def values(self, codes: Array) -> Array:
        """Returns what codes stand for, f64."""
        top = 2**self.bits - 1
        match self.kind:
            case "log2":
                return self.scale * np.exp2(-codes)
            case "log_sqrt2":
                odd = codes % 2
                found = np.exp2(-np.ceil(codes / 2)) * (1 + odd * (np.sqrt(2) - 1))
                return np.asarray(self.scale * found)
            case "shift_log2":
                power = self.low + codes * self.step
                power = np.rint(power) if self.whole_powers else power
                return np.maximum(np.exp2(power) - self.eta, 0)
            case "tangent":
                end = np.tan(self.angle * self.scale)
                return np.asarray(np.arctan(codes / top * end) / self.angle)

    @property
    def step(self) -> float:
        """Of u, from one code of `shift_log2` to the next."""
        high = float(np.log2(self.scale + self.eta))
        return (high - self.low) / (2**self.bits - 1) or 1.0

    @property
    def late(self) -> float:
        """Part of a step beyond a half at which `shift_log2` takes the next code.

        The middle between two powers is nearer to the larger in u. The shift falls out:
        u = log2((2^a + 2^(a + step)) / 2) for every a.
        """
        if self.kind != "shift_log2" or self.whole_powers:
            return 0.0
        return float(np.log2((1 + np.exp2(self.step)) / 2) / self.step) - 0.5

    def rounded(self, x: Array) -> Array:
        """Returns x as its codes hold it; what lies below the last code of a logarithm is 0."""
        values = self.values(self.codes(x))
        if self.kind in ("log2", "log_sqrt2"):
            steps = 1 if self.kind == "log2" else 2
            exponent = np.rint(-steps * np.log2(np.maximum(x, _TINY) / self.scale))
            values = np.where(exponent >= 2**self.bits, 0.0, values)
        return values

    def error(self, x: Array) -> float:
        """Mean square of what rounding changes."""
        return float(np.square(self.rounded(x) - x).mean())


def fitted(x: Array, kind: Kind, bits: int, *, whole_powers: bool = False) -> SoftmaxCodes:
    """Returns the quantizer of a kind with the least mean square error.

    Args:
        x: Results of a softmax, of any shape.
        kind: Which quantizer.
        bits: Of a code, 2 to 8.
        whole_powers: Whether `shift_log2` gives powers of two less eta, which runs by shifts.

    Raises:
        UsageError: For other numbers of bits, or numbers outside of 0 to 1.
    """
    if not 2 <= bits <= 8:
        raise UsageError(f"a softmax in {bits} bits: 2 to 8 are supported")
    flat = x.reshape(-1).astype(np.float64)
    if flat.size == 0 or flat.min() < 0 or flat.max() > 1 + 1e-3:
        raise UsageError("what a softmax gives lies in 0 to 1, and these numbers do not")
    candidates: list[SoftmaxCodes] = [
        made(float(np.quantile(flat, share)) or 1.0) for share in _PERCENTILES
        for made in _family(flat, kind, bits, whole_powers=whole_powers)
    ]  # fmt: skip
    candidates.sort(key=lambda each: each.error(flat))
    if whole_powers:
        return candidates[0]
    starts = {each.eta: each for each in reversed(candidates)}  # the best of every shift
    nearest = sorted(starts.values(), key=candidates.index)[:_STARTS]
    return min((_descended(each, flat) for each in nearest), key=lambda each: each.error(flat))


def _descended(best: SoftmaxCodes, flat: Array) -> SoftmaxCodes:
    """Returns the quantizer that no small step of one parameter makes better."""
    least = best.error(flat)
    for stride in _STRIDES:
        for _ in range(_ROUNDS):
            moved = min((best, *_neighbours(best, stride)), key=lambda each: each.error(flat))
            error = moved.error(flat)
            if error >= least:
                break
            best, least = moved, error
    return best


def _neighbours(codes: SoftmaxCodes, stride: float) -> list[SoftmaxCodes]:
    """Returns quantizers with one parameter a step larger or smaller."""
    found = [replace(codes, scale=codes.scale * f) for f in (1 + stride, 1 / (1 + stride))]
    if codes.kind == "shift_log2":
        least = float(np.exp2(codes.low)) - codes.eta
        for eta in (codes.eta * (1 + stride), codes.eta / (1 + stride)):
            found.append(replace(codes, eta=eta))
            if least + eta > 0:  # the least value stays where it is
                found.append(replace(codes, eta=eta, low=float(np.log2(least + eta))))
        found += [replace(codes, low=codes.low + step) for step in (stride, -stride)]
    if codes.kind == "tangent":
        found += [replace(codes, angle=codes.angle * f) for f in (1 + stride, 1 / (1 + stride))]
        found = [each for each in found if each.angle * each.scale < _WIDEST]
    return [each for each in found if each.kind != "shift_log2" or _is_rising(each)]


def _is_rising(codes: SoftmaxCodes) -> bool:
    return codes.low < float(np.log2(codes.scale + codes.eta))


def _family(
    flat: Array, kind: Kind, bits: int, *, whole_powers: bool
) -> Sequence[Callable[[float], SoftmaxCodes]]:
    """Returns makers of quantizers for a largest value."""
    lows = np.unique(np.quantile(flat, _LOWS))
    match kind:
        case "log2" | "log_sqrt2":
            return [lambda top: SoftmaxCodes(kind, bits, top)]
        case "shift_log2":
            return [
                lambda top, eta=eta, least=least: SoftmaxCodes(  # type: ignore[misc]  # bound in a loop
                    kind, bits, top, eta, low=float(np.log2(least + eta)),
                    whole_powers=whole_powers,
                )
                for eta in ETAS
                for least in lows
            ]  # fmt: skip
        case "tangent":
            return [
                lambda top, angle=angle: SoftmaxCodes(kind, bits, top, angle=angle)  # type: ignore[misc]  # bound in a loop
                for angle in _ANGLES
            ]
