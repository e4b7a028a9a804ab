"""Forms of linear attention that are compiled ahead of time: maps, quotients, gradients, steps."""

from __future__ import annotations

from collections.abc import Iterator

from regraft.backends.triton.kernels.form import Bound, Form
from regraft.backends.triton.kernels.linear_attention import linear_attention_kernel
from regraft.backends.triton.kernels.linear_attention_step import linear_attention_step_kernel
from regraft.backends.triton.kernels.linear_features import feature_gradient_kernel

_FLOATS = ("scale", "epsilon")
_WIDE = ("state_ptr", "final_ptr", "sums_ptr", "factor_ptr", "offset_ptr", "own_ptr", "dots_ptr")
_GRADIENT = {"HAS_STATE": True, "STRICT": True}


def linear_attention_forms() -> Iterator[Form]:
    """Yields every form of it."""
    yield from _chunk_forms()
    for label, feature_map, normalize, decay in (
        ("none", "none", False, "token"),
        ("elu", "elu", True, "none"),
        ("hedgehog", "hedgehog", True, "none"),
        ("delta", "none", False, "channel"),
    ):
        constants: dict[str, object] = {
            "DECAY": decay, "HAS_BETA": label == "delta", "HAS_STATE": True, "MAP": feature_map,
            "NORMALIZE": normalize, "BLOCK_D": 128, "BLOCK_E": 32,
        }  # fmt: skip
        yield Form(
            f"linear-attention-step-{label}", linear_attention_step_kernel, "bf16", constants,
            Bound.MEMORY, 4, wide=_WIDE, floats=_FLOATS,
        )  # fmt: skip
    for feature_map, has_own in (("elu", False), ("none", True), ("hedgehog", True)):
        constants = {"HAS_OWN": has_own, "MAP": feature_map, "ROWS": 16, "BLOCK_D": 128}
        yield Form(
            f"feature-gradient-{feature_map}", feature_gradient_kernel, "bf16", constants,
            Bound.MEMORY, 4, wide=_WIDE,
        )  # fmt: skip


def _chunk_forms() -> Iterator[Form]:
    for dtype, form, feature_map, normalize, settings in (
        ("bf16", "forward", "none", False, {}),
        ("bf16", "keys", "none", False, _GRADIENT),
        ("fp16", "forward", "none", False, {"HAS_DECAY": False}),
        ("fp32", "keys", "none", False, _GRADIENT),
        ("bf16", "forward", "elu", True, {"HAS_DECAY": False}),
        ("fp16", "forward", "exp", True, {"HAS_DECAY": False}),
        ("bf16", "forward", "hedgehog", True, {"HAS_STATE": True}),
        ("bf16", "queries", "hedgehog", True, _GRADIENT),
        ("bf16", "keys", "hedgehog", True, _GRADIENT),
        ("bf16", "values", "hedgehog", True, {"HAS_STATE": True}),
        ("fp16", "queries", "elu", True, {"HAS_DECAY": False}),
        ("fp16", "keys", "softmax", True, {"HAS_DECAY": False}),
        ("fp32", "forward", "hedgehog", True, {"HAS_STATE": True}),
        ("fp32", "keys", "hedgehog", True, _GRADIENT),
        ("fp32", "values", "elu", True, {"HAS_STATE": True}),
    ):
        is_wide, is_plain = dtype == "fp32", feature_map == "none" and not normalize
        chunk = 32 if is_plain and not is_wide else 16
        constants: dict[str, object] = {
            "HAS_DECAY": True, "HAS_STATE": False, "FORM": form, "STRICT": False,
            "MAP": feature_map, "NORMALIZE": normalize, "WIDE": normalize and dtype == "fp16",
            "PRECISION": "tf32" if is_wide else "ieee", "STATE_PRECISION": "tf32",
            "CHUNK": chunk, "BLOCK_D": 128, "BLOCK_E": 16 if is_wide else 32, "BLOCK_V": 128,
            **settings,
        }  # fmt: skip
        quotient = "-quotient" if normalize else ""
        yield Form(
            f"linear-attention-{form}-{feature_map}{quotient}-{dtype}", linear_attention_kernel,
            dtype, constants, Bound.MATMUL, 8, 1 if is_wide else 2, wide=_WIDE, floats=_FLOATS,
            hip={"warps": 4, "CHUNK": 32 if is_plain else 16, "BLOCK_E": 32},
        )  # fmt: skip
