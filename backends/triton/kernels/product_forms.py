"""Forms of products whose operands are more than two matrices: of experts, and of few bits."""

from __future__ import annotations

from collections.abc import Iterator

from regraft.backends.triton.kernels.form import COUNTS, Bound, Form
from regraft.backends.triton.kernels.grouped import grouped_gradient_kernel, grouped_kernel
from regraft.backends.triton.kernels.grouped_hidden import grouped_hidden_kernel
from regraft.backends.triton.kernels.grouped_low_bit import grouped_low_bit_kernel
from regraft.backends.triton.kernels.grouped_low_bit_gradient import (
    grouped_low_bit_gradient_kernel,
)
from regraft.backends.triton.kernels.grouped_low_bit_hidden import grouped_low_bit_hidden_kernel
from regraft.backends.triton.kernels.low_bit import low_bit_kernel
from regraft.backends.triton.kernels.low_bit_integer import low_bit_integer_kernel


def product_forms() -> Iterator[Form]:
    """Yields every form of them."""
    yield from _grouped_forms()
    yield from _hidden_forms()
    yield from _grouped_low_bit_forms()
    yield from _low_bit_forms()
    yield from _low_bit_integer_forms()


def _grouped_forms() -> Iterator[Form]:
    for label, dtype, m, n, k, stages in (
        ("few-rows", "bf16", 16, 64, 64, 4),
        ("large", "bf16", 64, 128, 64, 3),
        ("large", "fp32", 64, 64, 32, 3),
    ):
        precision = "tf32" if dtype == "fp32" else "ieee"
        constants: dict[str, object] = {
            "HAS_BIAS": True, "HAS_SHARE": True, "PRECISION": precision,
            "BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "EXPERTS": 64, "weight_k_stride": 1,
        }  # fmt: skip
        yield Form(
            f"grouped-{label}-{dtype}", grouped_kernel, dtype, constants, Bound.MATMUL, 4, stages,
            wholes=("counts_ptr",),
        )  # fmt: skip
        if label == "few-rows":
            continue
        constants = {
            "PRECISION": precision, "BLOCK_M": 32, "BLOCK_N": 64,
            "BLOCK_K": 64 if dtype == "fp32" else 128, "EXPERTS": 64,
        }  # fmt: skip
        yield Form(
            f"grouped-gradient-{dtype}", grouped_gradient_kernel, dtype, constants, Bound.MATMUL,
            4, 3, wholes=("counts_ptr",),
        )  # fmt: skip


def _hidden_forms() -> Iterator[Form]:
    for label, dtype, activation, m, n, k in (
        ("few-rows", "bf16", "silu", 16, 64, 64),
        ("large", "bf16", "silu", 64, 64, 64),
        ("large", "bf16", "gelu", 64, 64, 64),
        ("large", "bf16", "relu2", 64, 64, 64),
        ("large-soft", "bf16", "quick_gelu", 64, 64, 64),
        ("large-clip_after", "bf16", "silu", 64, 64, 64),
        ("large", "fp32", "gelu_tanh", 64, 32, 32),
        ("large-soft", "fp32", "silu", 64, 32, 32),
    ):
        bounds = label.rpartition("-")[2] if label.startswith("large-") else "clip"
        is_gated = activation != "relu2"
        constants: dict[str, object] = {
            "HAS_ROWS": True, "HAS_GATE": is_gated, "HAS_UP_BIAS": True,
            "HAS_GATE_BIAS": is_gated, "ACTIVATION": activation,
            "BOUNDS": bounds if is_gated else "none",
            "PRECISION": "tf32" if dtype == "fp32" else "ieee",
            "BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "EXPERTS": 64,
            "up_k_stride": 1, "gate_k_stride": 1,
        }  # fmt: skip
        yield Form(
            f"grouped-hidden-{label}-{activation}-{dtype}", grouped_hidden_kernel, dtype, constants,
            Bound.MATMUL, 4, 3, wholes=("counts_ptr", "rows_ptr"),
            floats=("limit", "gate_limit", "up_offset"),
        )  # fmt: skip


def _grouped_low_bit_forms() -> Iterator[Form]:
    for label, dtype, bits, m, n, k, warps in (
        ("few-rows", "bf16", 4, 16, 64, 128, 4),
        ("few-rows-table", "bf16", 4, 16, 64, 32, 4),
        ("large", "fp16", 8, 64, 64, 64, 8),
        ("large-table", "bf16", 4, 64, 64, 32, 8),
        ("large", "fp32", 4, 64, 32, 32, 8),
    ):
        has_table = label.endswith("table")
        common: dict[str, object] = {
            "BITS": bits, "HAS_ZEROS": bits == 4 and not has_table, "HAS_TABLE": has_table,
            "PRECISION": "tf32" if dtype == "fp32" else "ieee", "EXPERTS": 64,
        }  # fmt: skip
        # groups of 32 inputs: as many in a turn of the loop as the configuration is deep
        steps = 1 if dtype == "fp32" else (128 if m == 16 else 64) // k
        tile = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "STEPS": steps}
        plain = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": 2 * n}
        wide = ("scale_ptr", "up_scale_ptr", "gate_scale_ptr", "table_ptr")
        codes = ("codes_ptr", "zeros_ptr", "up_ptr", "gate_ptr", "up_zeros_ptr", "gate_zeros_ptr")
        for name, kernel, own, stages in (
            (
                "low-bit", grouped_low_bit_kernel,
                {**tile, "GROUPED": bits < 8, "HAS_BIAS": True, "HAS_SHARE": True}, 3,
            ),
            (
                "low-bit-hidden", grouped_low_bit_hidden_kernel,
                {
                    **tile, "GROUPED": bits < 8, "HAS_ROWS": True, "HAS_GATE": True,
                    "HAS_UP_BIAS": True, "HAS_GATE_BIAS": True, "BOUNDS": "clip",
                    "ACTIVATION": "quick_gelu" if has_table else "silu",
                }, 3,
            ),
            ("low-bit-gradient", grouped_low_bit_gradient_kernel, plain, 2),
        ):  # fmt: skip
            if name == "low-bit-gradient" and label.startswith("few"):
                continue
            yield Form(
                f"grouped-{name}-{label}-{bits}-{dtype}", kernel, dtype, {**common, **own},
                Bound.MATMUL, warps, stages, wide=wide, bytes=codes,
                wholes=("counts_ptr", "rows_ptr"), floats=("limit", "gate_limit", "up_offset"),
                unaligned=(*COUNTS, "zero"),
            )  # fmt: skip


def _low_bit_forms() -> Iterator[Form]:
    for label, dtype, bits, m, n, k, warps in (
        ("few-rows", "bf16", 4, 16, 64, 128, 4),
        ("few-rows", "fp16", 8, 16, 64, 128, 4),
        ("few-rows-table", "bf16", 4, 16, 64, 128, 4),
        ("large", "bf16", 4, 64, 128, 64, 8),
        ("large", "fp16", 2, 64, 128, 64, 8),
        ("large", "fp32", 4, 64, 64, 32, 4),
        ("large-table", "bf16", 4, 64, 128, 64, 8),
        ("large-table", "fp16", 8, 64, 128, 32, 8),
        ("large-table", "fp32", 4, 64, 64, 32, 4),
    ):
        has_table = label.endswith("table")
        constants: dict[str, object] = {
            "BITS": bits, "GROUPED": bits < 8, "HAS_ZEROS": bits == 4 and not has_table,
            "HAS_TABLE": has_table,
            "PRECISION": "tf32" if dtype == "fp32" else "ieee",
            "BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP_M": 8,
            "STEPS": 2 if m == 64 and k == 32 and dtype != "fp32" else 1,
        }  # fmt: skip
        yield Form(
            f"low-bit-{label}-{bits}-{dtype}", low_bit_kernel, dtype, constants, Bound.MATMUL,
            warps, 3, wide=("scale_ptr", "table_ptr"), bytes=("codes_ptr", "zeros_ptr"),
            unaligned=(*COUNTS, "zero"),
        )  # fmt: skip


def _low_bit_integer_forms() -> Iterator[Form]:
    for label, bits, m, n, k, warps in (
        ("few-rows", 8, 16, 64, 128, 4),
        ("large", 8, 64, 128, 64, 8),
        ("large", 4, 64, 128, 64, 8),
    ):
        constants: dict[str, object] = {
            "UNSIGNED": True, "BITS": bits, "GROUPED": bits < 8, "HAS_ZEROS": bits == 4,
            "BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP_M": 8,
        }  # fmt: skip
        signed = ("codes_ptr",) if bits == 8 else ()
        yield Form(
            f"low-bit-integer-{label}-{bits}", low_bit_integer_kernel, "u8", constants,
            Bound.MATMUL, warps, 3, wide=("scale_ptr", "x_scale_ptr", "y_ptr"),
            signed_bytes=signed, unaligned=(*COUNTS, "zero", "x_zero"),
        )  # fmt: skip
