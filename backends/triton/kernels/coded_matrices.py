"""Matrices of experts in codes: what kernels read, and what the codes stand for."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from regraft.backends.triton.kernels.low_bit import check_codes, dequantized


class CodedMatrices(NamedTuple):
    """One matrix [K, N] per expert, in codes.

    Args:
        codes: u8 [E, ceil(K * bits / 8), N], each packed by `pack_codes`; of 8 bits u8 or i8.
        scale: [E, ceil(K / group), N].
        zeros: u8 or i8 [E, ceil(K / group), N]; None: `zero` everywhere.
        table: f32 [2 ** bits], what codes stand for; there are no zero points then.
        bits: Of a code: 2, 4 or 8.
        group: Inputs that share a scale, a multiple of 16; 0: all.
        zero: The zero point where `zeros` are absent.
    """

    codes: Tensor
    scale: Tensor
    zeros: Tensor | None = None
    table: Tensor | None = None
    bits: int = 4
    group: int = 0
    zero: int = 0


def unpacked_matrices(
    codes: Tensor, scale: Tensor, zeros: Tensor | None, table: Tensor | None, zero: int, bits: int,
    group: int, size: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Returns the matrices [E, N, K] that codes stand for."""
    points = [None] * len(codes) if zeros is None else zeros.unbind()
    made = [
        dequantized(one, factor, point, zero, bits, size, group, dtype, table)
        for one, factor, point in zip(codes.unbind(), scale.unbind(), points, strict=True)
    ]
    return torch.stack(made).transpose(1, 2)


def check_coded(what: str, size: int, matrices: CodedMatrices, counts: Tensor) -> None:
    """Raises ValueError where codes, scales and counts of experts do not go together."""
    codes, scale, zeros, table, bits, group, zero = matrices
    if codes.ndim != 3 or counts.shape != codes.shape[:1] or len(scale) != len(codes):
        raise ValueError(
            f"{what}: codes {list(codes.shape)}, scale {list(scale.shape)}, counts "
            f"{list(counts.shape)}; expected [E, K / per byte, N], [E, groups, N], [E]"
        )
    if table is not None and (table.shape != (1 << bits,) or zeros is not None or zero):
        raise ValueError(
            f"{what}: a table {list(table.shape)} for codes of {bits} bits; expected "
            f"[{1 << bits}] and no zero points"
        )
    if len(codes):
        point = None if zeros is None else zeros[0]
        check_codes(what, size, codes[0], scale[0], point, bits, group or size)
