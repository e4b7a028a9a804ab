"""Forms of attention with alpha-entmax weights."""

from __future__ import annotations

from collections.abc import Iterator

from regraft.backends.triton.kernels.entmax import (
    ENTMAX_STEPS,
    entmax_attention_kernel,
    entmax_bounds_kernel,
)
from regraft.backends.triton.kernels.entmax_backward import (
    entmax_key_gradient_kernel,
    entmax_query_gradient_kernel,
)
from regraft.backends.triton.kernels.form import COUNTS, Bound, Form


def entmax_forms() -> Iterator[Form]:
    """Yields every form of them: each power, with a mask and without."""
    for label, dtype, power, mask in (
        ("plain", "bf16", 2, "none"),
        ("masked", "fp16", 0, "bool"),
        ("sparsemax", "fp32", 1, "none"),
    ):
        is_wide = dtype == "fp32"
        shared: dict[str, object] = {
            "MASK": mask, "HAS_LENGTHS": False, "HAS_ALPHAS": mask == "bool", "LEFT": False,
            "RIGHT": True,
            "PRECISION": "tf32" if is_wide else "ieee",
            "BLOCK_M": 16 if is_wide else 64, "BLOCK_N": 16, "BLOCK_D": 128,
            "mask_column_stride": 1,
        }  # fmt: skip
        valued = {**shared, "BLOCK_E": 128, "POWER": power}
        steps = {**valued, "STEPS": ENTMAX_STEPS}
        for name, kernel, constants in (
            ("entmax-bounds", entmax_bounds_kernel, shared),
            ("entmax", entmax_attention_kernel, steps),
            ("entmax-backward-queries", entmax_query_gradient_kernel, valued),
            ("entmax-backward-keys", entmax_key_gradient_kernel, valued),
        ):
            yield Form(
                f"{name}-{label}-{dtype}", kernel, dtype, constants, Bound.MATMUL,
                4 if kernel is entmax_key_gradient_kernel and not is_wide else 8,
                1 if is_wide else 2,
                wide=("alphas_ptr", "bounds_ptr", "delta_ptr", "dalphas_ptr"),
                floats=("scale", "slope", "power", "highest"),
                bytes=("mask_ptr",) if mask == "bool" else (),
                signed_bytes=("near_ptr", "used_ptr"),
                unaligned=(*COUNTS, "tiles", "row_tiles"),
                hip={"BLOCK_M": 16, "BLOCK_N": 16, "warps": 4},
            )  # fmt: skip
