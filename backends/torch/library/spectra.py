"""Fourier transforms of pairs (real, imaginary) in the last axis, and windows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def complex_of(x: Tensor) -> Tensor:
    """Returns pairs in the last axis as complex numbers; a single number is real."""
    return x[..., 0] if x.shape[-1] == 1 else torch.view_as_complex(x.contiguous())


def transform(x: Tensor, length: int | None, axis: int, inverse: bool, onesided: bool) -> Tensor:
    """Returns the discrete Fourier transform along an axis.

    Source: ONNX DFT-20.
    """
    axis %= x.dim()
    signal = complex_of(x)
    if inverse and onesided:
        return torch.fft.irfft(signal, length, axis).unsqueeze(-1)
    if inverse:
        return torch.view_as_real(torch.fft.ifft(signal, length, axis).resolve_conj())
    if onesided and not signal.is_complex():
        return torch.view_as_real(torch.fft.rfft(signal, length, axis))
    spectrum = torch.fft.fft(signal, length, axis)
    if onesided:
        spectrum = spectrum.narrow(axis, 0, spectrum.shape[axis] // 2 + 1)
    return torch.view_as_real(spectrum)


def transform_frames(
    signal: Tensor, step: int, window: Tensor | None, length: int | None, onesided: bool
) -> Tensor:
    """Returns the Fourier transform of overlapping frames, [batch, frames, bins, 2].

    Source: ONNX STFT-17.
    """
    if length is None:
        length = signal.shape[1] if window is None else window.shape[0]
    frames = complex_of(signal).unfold(1, length, step)
    frames = frames if window is None else frames * window
    if onesided and not frames.is_complex():
        return torch.view_as_real(torch.fft.rfft(frames))
    spectrum = torch.fft.fft(frames)
    return torch.view_as_real(spectrum[..., : length // 2 + 1] if onesided else spectrum)


def cosine_window(
    size: int,
    coefficients: Sequence[float],
    periodic: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Returns a window that is a sum of cosines of multiples of the angle."""
    steps = size if periodic else size - 1
    wide = torch.arange(size, dtype=torch.float64, device=device)
    angle = wide * (2 * math.pi / steps if steps else 0.0)
    total = torch.zeros_like(angle)
    for i, coefficient in enumerate(coefficients):
        total = total + coefficient * torch.cos(i * angle)
    return total.to(dtype)


def mel_bands(
    bands: int, length: int, rate: int, lower: Tensor, upper: Tensor, dtype: torch.dtype
) -> Tensor:
    """Returns the matrix [bins, bands] of triangles on the mel scale.

    Source: ONNX MelWeightMatrix-17.
    """
    low, high = (2595 * torch.log10(1 + edge.double().reshape(()) / 700) for edge in (lower, upper))
    places = torch.arange(bands + 2, dtype=torch.float64, device=lower.device)
    # ONNX divides by the number of edges, not of steps between them
    edges = low + places * ((high - low) / (bands + 2))
    hertz = 700 * (10 ** (edges / 2595) - 1)
    bins = torch.floor((length + 1) * hertz / rate)
    left, center, right = bins[:-2], bins[1:-1], bins[2:]
    j = torch.arange(length // 2 + 1, dtype=torch.float64, device=lower.device).unsqueeze(1)
    rising = torch.where(j >= left, (j - left) / (center - left).clamp(min=1), 0)
    falling = torch.where(j < right, (right - j) / (right - center).clamp(min=1), 0)
    whole = torch.where(j == center, 1, torch.where(j < center, rising, falling))
    return whole.to(dtype)
