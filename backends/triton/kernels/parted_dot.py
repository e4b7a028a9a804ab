"""Products over long rows of f32 in full, whose operands would not fit into registers."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def parted_dot(a, b, total, PRECISION: tl.constexpr):
    """Returns total + a @ b; products of f32 in full over more than 128 features in four parts.

    No matrix instruction computes those: a thread would hold whole rows, which do not fit.
    """
    M: tl.constexpr = a.shape[0]
    K: tl.constexpr = a.shape[1]
    N: tl.constexpr = b.shape[1]
    if PRECISION == "ieee" and K > 128 and a.dtype == tl.float32:
        parts = tl.permute(tl.reshape(a, [M, 4, K // 4]), (1, 0, 2))
        others = tl.reshape(b, [4, K // 4, N])
        total += tl.sum(tl.dot(parts, others, input_precision=PRECISION), axis=0)
    else:
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total
