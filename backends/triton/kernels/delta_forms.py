"""Forms of recurrences with delta rules or factors per channel that are compiled ahead of time."""

from __future__ import annotations

from collections.abc import Iterator

from regraft.backends.triton.kernels.channel_pair_gradient import channel_pair_gradient_kernel
from regraft.backends.triton.kernels.channel_pairs import (
    channel_pairs_kernel,
    unit_inverse_kernel,
)
from regraft.backends.triton.kernels.delta_pairs import delta_pairs_kernel
from regraft.backends.triton.kernels.delta_read_back import delta_read_back_kernel
from regraft.backends.triton.kernels.delta_scan import delta_scan_kernel
from regraft.backends.triton.kernels.form import Bound, Form

_WIDE = ("state_ptr", "final_ptr", "dfinal_ptr", "dstate_ptr", "alike_ptr", "lower_ptr")


def delta_forms() -> Iterator[Form]:
    """Yields every form of them."""
    yield from _pair_forms()
    for dtype in ("bf16", "fp32"):
        is_wide = dtype == "fp32"
        for decay, has_beta in (("token", True), ("channel", False), ("channel", True)):
            if is_wide and decay == "channel" and has_beta:
                continue
            chunk = 16 if is_wide else 64 if decay == "token" else 32
            constants: dict[str, object] = {
                "DECAY": decay, "HAS_BETA": has_beta, "HAS_STATE": True, "KEEP": False,
                "HAS_FINAL": True, "PARTED": not is_wide, "STATE_PRECISION": "tf32",
                "PRECISION": "tf32" if is_wide else "ieee", "CHUNK": chunk, "BLOCK_D": 128,
                "BLOCK_E": 16,
            }  # fmt: skip
            name = f"{decay}{'-delta' if has_beta else ''}"
            for part, kernel, own in (
                ("scan", delta_scan_kernel, {}),
                ("keep", delta_scan_kernel, {"KEEP": True}),
                ("read-back", delta_read_back_kernel, {}),
            ):
                yield Form(
                    f"delta-{part}-{name}-{dtype}", kernel, dtype, {**constants, **own},
                    Bound.MATMUL, 4 if decay == "token" else 8, 1 if is_wide else 2,
                    wide=_WIDE, floats=("scale",),
                )  # fmt: skip


def _pair_forms() -> Iterator[Form]:
    for dtype in ("bf16", "fp32"):
        is_wide = dtype == "fp32"
        settings: dict[str, object] = {
            "HAS_DECAY": True, "HAS_BETA": True, "PRECISION": "tf32" if is_wide else "ieee",
            "STATE_PRECISION": "tf32",
        }  # fmt: skip
        chunk = 16 if is_wide else 64
        sizes = {
            "BLOCK_M": chunk,
            "LEVELS": chunk.bit_length() - 1,
            "BLOCK_K": 32 if is_wide else 64,
        }
        name = f"{'few-rows-' if is_wide else ''}delta-pairs-{dtype}"
        yield Form(name, delta_pairs_kernel, dtype, {**settings, **sizes}, Bound.MATMUL, 4, 2)
        rows = {"CHUNK": 32, "BLOCK_M": 16, "BLOCK_D": 128, "BLOCK_K": 8}
        yield Form(
            f"few-rows-channel-pairs-{dtype}", channel_pairs_kernel, dtype, {**settings, **rows},
            Bound.MATMUL, 4, 1, wide=_WIDE,
        )  # fmt: skip
    precise = {"PRECISION": "tf32", "BLOCK_M": 32}
    yield Form(
        "few-rows-unit-inverse", unit_inverse_kernel, "bf16", {**precise, "LEVELS": 5},
        Bound.MATMUL, 4, wide=_WIDE,
    )  # fmt: skip
    yield Form(
        "few-rows-channel-pair-gradient", channel_pair_gradient_kernel, "fp32",
        {"PRECISION": "tf32", "CHUNK": 32, "BLOCK_M": 16, "BLOCK_K": 16}, Bound.MATMUL, 4, 1,
    )  # fmt: skip
