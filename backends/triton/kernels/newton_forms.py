"""Forms of Newton's iteration, compiled ahead of time."""

from __future__ import annotations

from collections.abc import Iterator

from regraft.backends.triton.kernels.form import COUNTS, Bound, Form
from regraft.backends.triton.kernels.newton import newton_gradient_kernel, newton_kernel

_WARPS = {("bf16", 16): (1, 1), ("bf16", 64): (4, 8), ("fp32", 16): (1, 1), ("fp32", 64): (8, 0)}


def newton_forms() -> Iterator[Form]:
    """Yields every form of them."""
    for (dtype, size), (warps, gradient_warps) in _WARPS.items():
        name = f"{'few-rows-' if size < 64 else ''}{size}-{dtype}"
        # products of bf16 are those of their f32, which tf32 holds
        shared: dict[str, object] = {
            "PRECISION": "tf32" if dtype == "bf16" else "ieee", "BLOCK_M": size,
        }  # fmt: skip
        for keep in (False, True):
            yield Form(
                f"newton{'-kept' if keep else ''}-{name}", newton_kernel, dtype,
                {**shared, "KEEP": keep}, Bound.MATMUL, warps, 1,
                wide=("out_ptr",) if keep else (), unaligned=(*COUNTS, "steps"),
            )  # fmt: skip
        if not gradient_warps:  # five products of f32 in full do not fit: PyTorch's are taken
            continue
        yield Form(
            f"newton-gradient-{name}", newton_gradient_kernel, dtype, shared, Bound.MATMUL,
            gradient_warps, 1, wide=("kept_ptr",), hip={"warps": min(4, gradient_warps)},
            unaligned=(*COUNTS, "steps"),
        )  # fmt: skip
