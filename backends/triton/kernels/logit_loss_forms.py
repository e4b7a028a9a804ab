"""Forms of the kernels for losses of logits in memory, compiled ahead of time."""

from __future__ import annotations

from collections.abc import Iterator

from regraft.backends.triton.kernels.form import Bound, Form
from regraft.backends.triton.kernels.logit_loss import (
    logit_loss_gradient_kernel,
    logit_loss_kernel,
    scale_rows_kernel,
)

_WIDE = ("factor_ptr", "loss_ptr", "sums_ptr", "dloss_ptr")
_FLOATS = ("smoothing", "z_weight", "softcap")


def logit_loss_forms() -> Iterator[Form]:
    """Yields every form of them."""
    for dtype in ("bf16", "fp32"):
        for is_capped in (False, True):
            name = f"{'-capped' if is_capped else ''}-{dtype}"
            for part, block, is_single, warps in (
                ("held", 4096, True, 8), ("looped", 4096 if is_capped else 8192, False, 16),
            ):  # fmt: skip
                for has_gradient in (False, True):
                    constants: dict[str, object] = {
                        "GRADIENT": has_gradient, "SMOOTH": True, "SOFTCAP": is_capped,
                        "BLOCK": block, "SINGLE": is_single,
                    }  # fmt: skip
                    way, hip = "-in-place" if has_gradient else "", {}
                    if has_gradient and not is_single:
                        hip = {"BLOCK": block, "warps": warps}
                        constants["BLOCK"], warps = 2 * block, 32
                    yield Form(
                        f"logit-loss-{part}{way}{name}", logit_loss_kernel, dtype, constants,
                        Bound.MEMORY, warps, wide=_WIDE, wholes=("labels_ptr",), floats=_FLOATS,
                        hip=hip,
                    )  # fmt: skip
            yield Form(
                f"logit-loss-gradient{name}", logit_loss_gradient_kernel, dtype,
                {"SOFTCAP": is_capped, "BLOCK": 1024}, Bound.MEMORY, 4, wide=_WIDE,
                wholes=("labels_ptr",), floats=_FLOATS,
            )  # fmt: skip
        yield Form(
            f"scale-rows-{dtype}", scale_rows_kernel, dtype, {"BLOCK": 1024, "STEPS": 16},
            Bound.MEMORY, 4, wide=("factor_ptr",),
        )  # fmt: skip
