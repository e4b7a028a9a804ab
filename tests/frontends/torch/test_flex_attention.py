"""`flex_attention`: scores and masks of the user's own, for every batch and length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="captures are compared with PyTorch")

from torch import nn  # noqa: E402
from torch.nn.attention.flex_attention import create_block_mask, flex_attention  # noqa: E402

from tests.frontends.torch.oracle import check_capture  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")  # on purpose
SEQUENCE = {0: "batch", 2: "length"}
SIZES = ({}, {"batch": 3, "length": 9}, {"batch": 1, "length": 4})


class Slopes(nn.Module):
    """A bias by distance and head, from a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("slopes", torch.tensor([0.5, 0.1]))

    def forward(self, q: Any, k: Any, v: Any) -> Any:
        def score(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
            return torch.where(j <= i, score + self.slopes[h] * (j - i), -float("inf"))

        return flex_attention(q, k, v, score_mod=score)


def test_scores_keep_batch_and_length(tmp_path: Path) -> None:
    q, k, v = torch.randn(3, 2, 2, 6, 8).unbind()
    check_capture(
        Slopes(), (q, k, v), dynamic=dict.fromkeys("qkv", SEQUENCE), sizes=SIZES, folder=tmp_path
    )


class Window(nn.Module):
    """A causal window, shared keys, the sum of the scores as well."""

    def forward(self, q: Any, k: Any, v: Any) -> Any:
        mask = create_block_mask(
            lambda b, h, i, j: (j <= i) & (i - j < 4), None, None, 16, 16, device="cpu"
        )
        return flex_attention(q, k, v, block_mask=mask, scale=0.3, enable_gqa=True, return_lse=True)


def test_masks_and_shared_heads(tmp_path: Path) -> None:
    q, k, v = torch.randn(2, 4, 16, 8), torch.randn(2, 2, 16, 8), torch.randn(2, 2, 16, 8)
    check_capture(
        Window(), (q, k, v), dynamic={name: {0: "batch"} for name in "qkv"},
        sizes=({}, {"batch": 3}), folder=tmp_path,
    )  # fmt: skip
