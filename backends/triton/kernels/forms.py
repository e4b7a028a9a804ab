"""The forms of every kernel that are compiled ahead of time: one per path through its code."""

from __future__ import annotations

from collections.abc import Iterator

from regraft.backends.triton.kernels.attention import attention_kernel
from regraft.backends.triton.kernels.attention_backward import (
    attention_key_gradient_kernel,
    attention_query_gradient_kernel,
)
from regraft.backends.triton.kernels.cross_entropy import (
    cross_entropy_kernel,
    logit_gradient_kernel,
)
from regraft.backends.triton.kernels.decoding import decode_kernel, decode_merge_kernel
from regraft.backends.triton.kernels.delta_forms import delta_forms
from regraft.backends.triton.kernels.entmax_forms import entmax_forms
from regraft.backends.triton.kernels.form import COUNTS, Bound, Form
from regraft.backends.triton.kernels.gated import (
    GATED_ACTIVATIONS,
    gated_backward_kernel,
    gated_kernel,
)
from regraft.backends.triton.kernels.gradient_filter import filtered_product_kernel
from regraft.backends.triton.kernels.linear import linear_kernel
from regraft.backends.triton.kernels.linear_attention_forms import linear_attention_forms
from regraft.backends.triton.kernels.logit_loss_forms import logit_loss_forms
from regraft.backends.triton.kernels.newton_forms import newton_forms
from regraft.backends.triton.kernels.product_forms import product_forms
from regraft.backends.triton.kernels.rope import rope_kernel
from regraft.backends.triton.kernels.row_norm import row_norm_kernel
from regraft.backends.triton.kernels.row_norm_backward import (
    norm_weight_gradient_kernel,
    row_norm_backward_kernel,
)
from regraft.backends.triton.kernels.softmax import (
    softmax_backward_kernel,
    softmax_kernel,
    two_pass_softmax_kernel,
)


def forms() -> Iterator[Form]:
    """Yields every form, in bf16 where the dtype changes nothing but widths."""
    yield from _norm_forms()
    yield from _softmax_forms()
    yield from _gated_forms()
    yield from _linear_forms()
    yield from _attention_forms()
    yield from _decode_forms()
    yield from _cross_entropy_forms()
    yield from logit_loss_forms()
    yield from newton_forms()
    yield from linear_attention_forms()
    yield from delta_forms()
    yield from product_forms()
    yield from entmax_forms()
    for interleaved in (False, True):
        constants = {"INVERSE": False, "INTERLEAVED": interleaved, "HEADS": 16, "BLOCK": 64}
        name = f"rope-{'neighbours' if interleaved else 'halves'}"
        yield Form(
            name, rope_kernel, "bf16", constants, Bound.MEMORY, 4, wide=("cos_ptr", "sin_ptr")
        )


def _norm_forms() -> Iterator[Form]:
    wide = ("mean_ptr", "rstd_ptr", "dweight_ptr", "dbias_ptr")
    for label, center, rows, block, single, warps in (
        ("rms-short", False, 8, 256, True, 4),
        ("layer-registers", True, 1, 4096, True, 8),
        ("rms-registers", False, 1, 16384, True, 16),
        ("layer-loop", True, 1, 8192, False, 16),
    ):
        constants: dict[str, object] = {
            "CENTER": center,
            "HAS_BIAS": center,
            "HAS_RESIDUAL": True,
            "ROWS": rows,
            "BLOCK": block,
            "SINGLE": single,
        }
        yield Form(
            f"norm-{label}", row_norm_kernel, "bf16", constants, Bound.MEMORY, warps,
            wide=wide, floats=("eps",),
        )  # fmt: skip
    for label, center, rows, block, single, warps in (
        ("rms-short", False, 4, 256, True, 4),
        ("layer-registers", True, 1, 4096, True, 8),
        ("layer-long-registers", True, 1, 8192, True, 16),
        ("layer-loop", True, 1, 4096, False, 8),
    ):
        constants = {
            "CENTER": center,
            "HAS_BIAS": center,
            "HAS_TOTAL": True,
            "ROWS": rows,
            "BLOCK": block,
            "SINGLE": single,
            "STAGES": 3 if single else 1,
        }
        yield Form(
            f"norm-backward-{label}", row_norm_backward_kernel, "bf16", constants, Bound.MEMORY,
            warps, wide=wide, hip={"STAGES": 1},
        )  # fmt: skip
    columns = {"CENTER": True, "HAS_BIAS": True, "ROWS": 32, "COLUMNS": 64}
    yield Form(
        "norm-weight-gradient", norm_weight_gradient_kernel, "bf16", columns, Bound.MEMORY, 4,
        wide=wide,
    )  # fmt: skip


def _softmax_forms() -> Iterator[Form]:
    for label, rows, block, single, warps in (
        ("short", 8, 256, True, 4),
        ("registers", 1, 16384, True, 16),
        ("loop", 1, 8192, False, 16),
    ):
        tile = {"ROWS": rows, "BLOCK": block}
        constants: dict[str, object] = {**tile, "SINGLE": single}
        yield Form(f"softmax-{label}", softmax_kernel, "bf16", constants, Bound.MEMORY, warps)
        yield Form(
            f"softmax-backward-{label}", softmax_backward_kernel, "bf16", constants, Bound.MEMORY,
            warps,
        )  # fmt: skip
        yield Form(
            f"softmax-two-pass-{label}", two_pass_softmax_kernel, "bf16", tile, Bound.MEMORY, warps
        )


def _gated_forms() -> Iterator[Form]:
    for activation in GATED_ACTIVATIONS:
        constants = {"ACTIVATION": activation, "BLOCK": 1024}
        yield Form(f"gated-{activation}", gated_kernel, "bf16", constants, Bound.MEMORY, 4)
        yield Form(
            f"gated-backward-{activation}", gated_backward_kernel, "bf16", constants,
            Bound.MEMORY, 4,
        )  # fmt: skip


def _attention_forms() -> Iterator[Form]:
    floats = ("scale", "softcap", "low", "high")
    for label, dtype, settings in (
        ("plain", "bf16", {}),
        ("causal", "fp16", {"RIGHT": True}),
        ("clipped", "bf16", {"CLIPPED": True, "MASK": "float", "BLOCK_M": 64, "BLOCK_N": 32}),
        ("capped", "bf16", {"SOFTCAP": True, "LEFT": True, "RIGHT": True, "HAS_SINKS": True}),
        ("causal", "fp32", {"RIGHT": True}),
    ):
        is_wide = dtype == "fp32"
        constants: dict[str, object] = {
            "MASK": "none", "HAS_LENGTHS": False, "HAS_OFFSETS": False, "HAS_SINKS": False,
            "LEFT": False, "RIGHT": False, "SOFTCAP": False, "CLIPPED": False,
            "PRECISION": "tf32" if is_wide else "ieee", "BLOCK_M": 32 if is_wide else 128,
            "BLOCK_N": 32 if is_wide else 64, "BLOCK_D": 128, "BLOCK_E": 128,
            "mask_column_stride": 1, **settings,
        }  # fmt: skip
        yield Form(
            f"attention-{label}-{dtype}", attention_kernel, dtype, constants, Bound.MATMUL,
            4 if is_wide else 8, 2 if is_wide else 3, wide=("sums_ptr",), floats=floats,
            hip={"BLOCK_M": 32 if label == "clipped" else 64, "BLOCK_N": 32, "warps": 4},
        )  # fmt: skip
        constants.pop("HAS_SINKS")
        for kind, kernel, more in (
            (
                "queries",
                attention_query_gradient_kernel,
                {"HAS_DS": False, "BLOCK_M": 32 if is_wide else 64},
            ),
            (
                "keys",
                attention_key_gradient_kernel,
                {"BLOCK_M": 32 if is_wide else 16, "BLOCK_N": 32 if is_wide else 64},
            ),
        ):
            yield Form(
                f"attention-backward-{kind}-{label}-{dtype}", kernel, dtype,
                {**constants, **more}, Bound.MATMUL, 8, 1 if is_wide else 2,
                wide=("sums_ptr", "delta_ptr", "ds_ptr"), floats=floats,
                hip={"BLOCK_M": 16, "BLOCK_N": 16, "warps": 4},
            )  # fmt: skip


def _decode_forms() -> Iterator[Form]:
    for dtype, label, mask in (
        ("bf16", "own", "none"), ("bf16", "unified", "none"), ("bf16", "unified-padded", "bool"),
        ("bf16", "own-added", "float"), ("fp32", "own", "none"), ("fp32", "unified-added", "float"),
    ):  # fmt: skip
        constants: dict[str, object] = {
            "MASK": mask, "HAS_LENGTHS": mask == "bool", "HAS_POSITIONS": mask == "bool",
            "LEFT": mask == "bool", "SOFTCAP": False, "UNIFIED": label.startswith("unified"),
            "PRECISION": "tf32" if dtype == "fp32" else "ieee", "BLOCK_G": 16,
            "BLOCK_N": 32 if dtype == "fp32" else 64, "BLOCK_D": 128, "BLOCK_E": 128,
            "mask_column_stride": 1,
        }  # fmt: skip
        yield Form(
            f"decode-{label}-{dtype}", decode_kernel, dtype, constants, Bound.MATMUL,
            8 if dtype == "bf16" and mask != "none" else 4, 3 if dtype == "bf16" else 2,
            wide=("values_ptr", "sums_ptr"),
            floats=("scale", "softcap", "phi", "least", "most"),
            wholes=("lengths_ptr", "positions_ptr"),
            bytes=("mask_ptr",) if mask == "bool" else (), hip={"BLOCK_N": 32, "warps": 4},
        )  # fmt: skip
    constants = {"HAS_SINKS": True, "SPLITS": 64, "BLOCK_E": 128}
    yield Form(
        "decode-merge", decode_merge_kernel, "bf16", constants, Bound.MEMORY, 4,
        wide=("values_ptr", "sums_ptr"),
    )  # fmt: skip


def _cross_entropy_forms() -> Iterator[Form]:
    for dtype, m, n, k, warps in (("bf16", 128, 64, 64, 8), ("fp32", 64, 32, 32, 8)):
        constants: dict[str, object] = {
            "SOFTCAP": True, "PRECISION": "tf32" if dtype == "fp32" else "ieee",
            "BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k,
        }  # fmt: skip
        for name, kernel, own in (
            ("cross-entropy", cross_entropy_kernel, {"GROUP": 16}),
            ("logit-gradient", logit_gradient_kernel, {"GROUP": 16, "FILTER": False}),
            ("filtered-logit-gradient", logit_gradient_kernel, {"GROUP": 16, "FILTER": True}),
        ):
            yield Form(
                f"{name}-{dtype}", kernel, dtype, {**constants, **own}, Bound.MATMUL, warps,
                wide=("sums_ptr", "chosen_ptr", "dloss_ptr"), floats=("softcap", "threshold"),
                wholes=("labels_ptr",), bytes=("kept_ptr",),
                unaligned=(*COUNTS, "V", "first_word", "width"),
            )  # fmt: skip
        tile = {name: constants[name] for name in ("PRECISION", "BLOCK_K")}
        for name, i, j, stride in (("rows", m, n, "d_j"), ("words", n, m, "d_i")):
            sizes: dict[str, object] = {"BLOCK_I": i, "BLOCK_J": j, f"{stride}_stride": 1}
            yield Form(
                f"filtered-product-{name}-{dtype}", filtered_product_kernel, dtype,
                {**tile, **sizes}, Bound.MATMUL, warps, wide=("out_ptr",), bytes=("kept_ptr",),
                unaligned=("height", "depth", "kept_i_stride", "kept_j_stride"),
            )  # fmt: skip


def _linear_forms() -> Iterator[Form]:
    for label, dtype, activation, m, n, k, warps, stages in (
        ("few-rows", "bf16", "none", 16, 32, 128, 4, 4),
        ("large", "bf16", "gelu_tanh", 128, 128, 64, 8, 3),
        ("large", "fp16", "silu", 128, 128, 64, 8, 3),
        ("large", "fp32", "gelu", 64, 64, 32, 4, 3),
    ):
        constants: dict[str, object] = {
            "HAS_BIAS": True,
            "ACTIVATION": activation,
            "PRECISION": "tf32" if dtype == "fp32" else "ieee",
            "BLOCK_M": m,
            "BLOCK_N": n,
            "BLOCK_K": k,
            "GROUP": 8,
            "weight_k_stride": 1,
        }
        yield Form(
            f"linear-{label}-{dtype}", linear_kernel, dtype, constants, Bound.MATMUL, warps, stages
        )
