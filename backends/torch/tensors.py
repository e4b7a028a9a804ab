"""Element types of PyTorch, and tensors from arrays and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from regraft.ir.errors import UnsupportedError
from regraft.ir.types import DType, dtype_of

TORCH_DTYPES: dict[DType, torch.dtype] = {
    DType.F64: torch.float64,
    DType.F32: torch.float32,
    DType.F16: torch.float16,
    DType.BF16: torch.bfloat16,
    DType.F8E4M3FN: torch.float8_e4m3fn,
    DType.F8E4M3FNUZ: torch.float8_e4m3fnuz,
    DType.F8E5M2: torch.float8_e5m2,
    DType.F8E5M2FNUZ: torch.float8_e5m2fnuz,
    DType.F8E8M0: torch.float8_e8m0fnu,
    DType.I64: torch.int64,
    DType.I32: torch.int32,
    DType.I16: torch.int16,
    DType.I8: torch.int8,
    DType.U64: torch.uint64,
    DType.U32: torch.uint32,
    DType.U16: torch.uint16,
    DType.U8: torch.uint8,
    DType.BOOL: torch.bool,
    DType.C64: torch.complex64,
    DType.C128: torch.complex128,
    # PyTorch computes with none of these; the wider type holds every value of the narrow one
    DType.I4: torch.int8,
    DType.I2: torch.int8,
    DType.U4: torch.uint8,
    DType.U2: torch.uint8,
    DType.F4E2M1: torch.float8_e4m3fn,
}
"""The type that holds an element; strings have none."""

_WIDER = {
    DType.I4: DType.I8,
    DType.I2: DType.I8,
    DType.U4: DType.U8,
    DType.U2: DType.U8,
    DType.F4E2M1: DType.F8E4M3FN,
}
_THROUGH_BITS = frozenset(
    dtype for dtype in TORCH_DTYPES if (dtype.is_float and dtype.bits < 16) or dtype is DType.BF16
)
_BITS = {1: (np.uint8, torch.uint8), 2: (np.int16, torch.int16)}


def torch_dtype(dtype: DType) -> torch.dtype:
    """Returns the element type that holds `dtype`.

    Raises:
        UnsupportedError: For strings.
    """
    found = TORCH_DTYPES.get(dtype)
    if found is None:
        raise UnsupportedError(
            f"PyTorch has no tensors of element type `{dtype}`", hint="convert to another target"
        )
    return found


def tensor_from(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """Returns a tensor that owns a copy of the array; 4- and 2-bit types are stored wider."""
    dtype = dtype_of(array)
    wide = _WIDER.get(dtype)
    target = torch_dtype(dtype)
    if wide is not None:
        dtype, array = wide, array.astype(wide.numpy)
    # never shared: training must not change the module, nor write to a file mapped for reading
    array = np.array(array, copy=True, order="C")
    if dtype not in _THROUGH_BITS:
        return torch.from_numpy(array)
    bits, stand_in = _BITS[dtype.bits // 8]
    return (
        torch.from_numpy(array.view(bits)).view(target)
        if array.ndim
        else (torch.from_numpy(array.reshape(1).view(bits)).to(stand_in).view(target).reshape(()))
    )


def array_from(tensor: torch.Tensor, dtype: DType) -> np.ndarray[Any, Any]:
    """Returns a copy of a tensor's elements as an array of `dtype`."""
    plain = tensor.detach().cpu().contiguous()
    wide = _WIDER.get(dtype, dtype)
    if plain.dtype != TORCH_DTYPES[wide]:
        plain = plain.to(TORCH_DTYPES[wide])
    if wide in _THROUGH_BITS:
        bits, stand_in = _BITS[wide.bits // 8]
        flat = plain.reshape(-1).view(stand_in).numpy().astype(bits, copy=True)
        array = flat.view(wide.numpy).reshape(tuple(plain.shape))
    else:
        array = plain.numpy().copy()
    narrow: np.ndarray[Any, Any] = array if wide is dtype else array.astype(dtype.numpy)
    return narrow
