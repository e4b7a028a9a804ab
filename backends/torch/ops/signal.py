"""Emitters of Fourier transforms, windows and random tensors."""

from __future__ import annotations

from regraft.backends.torch.emitter import Emit, EmitContext, Emitter
from regraft.backends.torch.library import randomness, spectra
from regraft.backends.torch.ops.params import int_param, operand
from regraft.ir.ops import random
from regraft.ir.ops import signal as ops
from regraft.ir.types import DType


def _emit_dft(e: EmitContext) -> str:
    length, axis = int_param(e, "length"), int_param(e, "axis") or "-2"
    settings = f"{length}, {axis}, {e.attr('inverse')}, {e.attr('onesided')}"
    return f"{e.helper(spectra.transform)}({e.input(0)}, {settings})"


def _emit_stft(e: EmitContext) -> str:
    step, length = int_param(e, "frame_step"), int_param(e, "frame_length")
    settings = f"{step}, {e.optional(2)}, {length}, {e.attr('onesided')}"
    return f"{e.helper(spectra.transform_frames)}({e.input(0)}, {settings})"


def _window(*coefficients: str) -> Emitter:
    """Returns an emitter of a sum of cosines of multiples of the angle."""

    def run(e: EmitContext) -> str:
        size, dtype = int_param(e, "size"), e.node.output.dtype or DType.F32
        values = f"({', '.join(coefficients)})"
        where = f"{e.attr('periodic')}, {e.dtype(dtype)}, {e.device}"
        return f"{e.helper(spectra.cosine_window)}({size}, {values}, {where})"

    return run


def _emit_mel(e: EmitContext) -> str:
    dtype = e.node.output.dtype or DType.F32
    counts = [int_param(e, name) for name in ("num_mel_bins", "dft_length", "sample_rate")]
    arguments = ", ".join(map(str, [*counts, e.input(3), e.input(4), e.dtype(dtype)]))
    return f"{e.helper(spectra.mel_bands)}({arguments})"


def _generator(e: EmitContext) -> str:
    seed = e.attr("seed")
    if seed is None:
        return ""
    return f", generator={e.helper(randomness.seeded)}({abs(hash(float(seed)))}, {e.device})"


def _emit_normal(e: EmitContext) -> str:
    mean, scale, dtype = e.attr("mean"), e.attr("scale"), e.dtype(e.attr("dtype"))
    text = f"torch.randn({e.sizes(e.attr('shape'))}, dtype={dtype}, device={e.device}"
    text += f"{_generator(e)})"
    text += "" if scale == 1 else f" * {scale!r}"
    return text if mean == 0 else f"{text} + {mean!r}"


def _emit_uniform(e: EmitContext) -> str:
    low, high, dtype = e.attr("low"), e.attr("high"), e.dtype(e.attr("dtype"))
    text = f"torch.rand({e.sizes(e.attr('shape'))}, dtype={dtype}, device={e.device}"
    text += f"{_generator(e)})"
    text += "" if high - low == 1 else f" * {high - low!r}"
    return text if low == 0 else f"{text} + {low!r}"


def _emit_multinomial(e: EmitContext) -> str:
    draws = f"torch.multinomial({e.input(0)}.softmax(-1), {e.attr('sample_size')}"
    draws += f", replacement=True{_generator(e)})"
    return draws if e.attr("dtype") is DType.I64 else f"{draws}.to({e.dtype(e.attr('dtype'))})"


def _emit_bernoulli(e: EmitContext) -> str:
    text = f"torch.bernoulli({e.input(0)}{_generator(e)})"
    dtype = e.node.output.dtype
    same = dtype is None or dtype is operand(e, 0).dtype
    return text if same or dtype is None else f"{text}.to({e.dtype(dtype)})"


EMITS = (
    Emit(ops.dft, _emit_dft),
    Emit(ops.stft, _emit_stft),
    Emit(ops.hann_window, _window("0.5", "-0.5")),
    Emit(ops.hamming_window, _window("25 / 46", "-21 / 46")),
    Emit(ops.blackman_window, _window("0.42", "-0.5", "0.08")),
    Emit(ops.mel_weight_matrix, _emit_mel),
    Emit(random.random_normal, _emit_normal),
    Emit(random.random_uniform, _emit_uniform),
    Emit(random.multinomial, _emit_multinomial),
    Emit(random.bernoulli, _emit_bernoulli),
)
