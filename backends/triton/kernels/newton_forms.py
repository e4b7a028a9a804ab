"""Forms of Newton's iteration, compiled ahead of time."""

from __future__ import annotations

from collections.abc import Iterator

from regraft.backends.triton.kernels.form import COUNTS, Bound, Form
from regraft.backends.triton.kernels.newton import newton_gradient_kernel, newton_kernel

_WARPS = {16: (1, 1), 64: (4, 8)}
"""Rows of a matrix -> warps of the iteration, and of its gradient."""


def newton_forms() -> Iterator[Form]:
    """Yields every form of them; products of 16 bits are those of their f32, in tf32."""
    for dtype in ("bf16", "fp32"):
        for size, (warps, gradient_warps) in _WARPS.items():
            name = f"{'few-rows-' if size < 64 else ''}{size}-{dtype}"
            shared: dict[str, object] = {"PRECISION": "tf32", "BLOCK_M": size}
            for keep in (False, True):
                yield Form(
                    f"newton{'-kept' if keep else ''}-{name}", newton_kernel, dtype,
                    {**shared, "KEEP": keep}, Bound.MATMUL, warps, 1,
                    wide=("out_ptr",) if keep else (), unaligned=(*COUNTS, "steps"),
                )  # fmt: skip
            if (dtype, size) == ("fp32", 64):
                continue  # PyTorch's products
            yield Form(
                f"newton-gradient-{name}", newton_gradient_kernel, dtype, shared, Bound.MATMUL,
                gradient_warps, 1, wide=("kept_ptr",), hip={"warps": min(4, gradient_warps)},
                unaligned=(*COUNTS, "steps"),
            )  # fmt: skip
