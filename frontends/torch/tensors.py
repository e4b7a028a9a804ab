"""Element types and tensor data of PyTorch, shared with numpy without a copy."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch

from regraft.ir.errors import UnsupportedError
from regraft.ir.types import DType

DTYPES: dict[torch.dtype, DType] = {
    torch.float64: DType.F64,
    torch.float32: DType.F32,
    torch.float16: DType.F16,
    torch.bfloat16: DType.BF16,
    torch.float8_e4m3fn: DType.F8E4M3FN,
    torch.float8_e4m3fnuz: DType.F8E4M3FNUZ,
    torch.float8_e5m2: DType.F8E5M2,
    torch.float8_e5m2fnuz: DType.F8E5M2FNUZ,
    torch.float8_e8m0fnu: DType.F8E8M0,
    torch.int64: DType.I64,
    torch.int32: DType.I32,
    torch.int16: DType.I16,
    torch.int8: DType.I8,
    torch.uint64: DType.U64,
    torch.uint32: DType.U32,
    torch.uint16: DType.U16,
    torch.uint8: DType.U8,
    torch.bool: DType.BOOL,
    torch.complex64: DType.C64,
    torch.complex128: DType.C128,
}

# numpy has no such type: the bits are seen as integers, then as the type of ml_dtypes
_BITS: dict[torch.dtype, tuple[torch.dtype, np.dtype[Any]]] = {
    torch.bfloat16: (torch.int16, np.dtype(ml_dtypes.bfloat16)),
    torch.float8_e4m3fn: (torch.uint8, np.dtype(ml_dtypes.float8_e4m3fn)),
    torch.float8_e4m3fnuz: (torch.uint8, np.dtype(ml_dtypes.float8_e4m3fnuz)),
    torch.float8_e5m2: (torch.uint8, np.dtype(ml_dtypes.float8_e5m2)),
    torch.float8_e5m2fnuz: (torch.uint8, np.dtype(ml_dtypes.float8_e5m2fnuz)),
    torch.float8_e8m0fnu: (torch.uint8, np.dtype(ml_dtypes.float8_e8m0fnu)),
}


def dtype_from_torch(dtype: torch.dtype) -> DType:
    """Returns the element type of the IR.

    Raises:
        UnsupportedError: For one that the IR does not know (quantized and packed types).
    """
    found = DTYPES.get(dtype)
    if found is None:
        raise UnsupportedError(
            f"element type `{dtype}` has no counterpart",
            hint="dequantize the tensor, or convert the model to a plain element type",
        )
    return found


def array_from_tensor(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """Returns the data of a tensor; shares memory when it lies contiguously on the CPU.

    Raises:
        UnsupportedError: For an element type or layout that the IR does not know.
    """
    if tensor.layout is not torch.strided:
        raise UnsupportedError(
            f"a tensor of layout `{tensor.layout}` has no counterpart", hint="call `.to_dense()`"
        )
    dtype_from_torch(tensor.dtype)
    # `resolve_conj`: lazy conjugates and negatives share the bits of the plain tensor
    plain = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg()
    bits = _BITS.get(tensor.dtype)
    array: np.ndarray[Any, Any] = (plain if bits is None else plain.view(bits[0])).numpy()
    return array if bits is None else array.view(bits[1])
