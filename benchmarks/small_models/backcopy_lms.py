"""Small language models of Bigram-Backcopy, with a softmax and with other weights.

One block of 32 with two heads, normalized before attention and the feed-forward part, trained
with AdamW and decay of all matrices: a training takes twenty seconds of one core. With the decay
scores grow by the gains of norms and by what is large at the mark, as they do in large models, and
not by the matrices.
"""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import regraft
from benchmarks.small_models import backcopy, corpus
from benchmarks.small_models.store import Kind, SmallModel, get_kind
from benchmarks.small_models.training import Schedule
from regraft.ir.module import Module

_WIDTH, _HEADS, _HIDDEN, _LAYERS = 32, 2, 128, 1
_BATCH = 32
_SCHEDULE = Schedule(3000, 1e-2, warmup=100, checkpoint_every=500, weight_decay=1.0)
_CALIBRATION_SEED = 77
_FILE = "state.pt"

VARIANTS: Mapping[str, str] = {
    "softmax": "", "clipped": "clipped,gamma=-0.1", "gated": "gated,share=0.5",
}  # fmt: skip
"""Options of `replace-softmax` by the name of the variant; none for the model as it is."""


def model(variant: str, seed: int) -> SmallModel:
    """Returns a trained model; the first time, trains it: twenty seconds of one core."""
    return get_kind(_KINDS[variant], seed)


def module(trained: SmallModel) -> Module:
    """Returns the module of a trained model, of any batch."""
    return _captured(trained.net())


def calibration(count: int) -> list[dict[str, Any]]:
    """Returns texts for ranges of activations."""
    return [{"input_ids": backcopy.draw(_CALIBRATION_SEED, step, _BATCH)} for step in range(count)]


class _Block(nn.Module):  # type: ignore[misc]  # types of PyTorch are not read here
    """Attention and a feed-forward part, each with its norm before it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.hidden_norm = (nn.RMSNorm(_WIDTH, eps=1e-6) for _ in range(2))
        self.q, self.k, self.v, self.o = (nn.Linear(_WIDTH, _WIDTH, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(_WIDTH, _HIDDEN), nn.Linear(_HIDDEN, _WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention_norm(x)
        q, k, v = (
            part(y).view(-1, backcopy.LENGTH, _HEADS, _WIDTH // _HEADS).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        found = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(found.transpose(1, 2).reshape(-1, backcopy.LENGTH, _WIDTH))
        hidden = nn.functional.gelu(self.up(self.hidden_norm(x)))
        return x + self.down(hidden)


class BackcopyLm(nn.Module):  # type: ignore[misc]  # types of PyTorch are not read here
    """Ids i64[B, LENGTH] to logits f32[B, LENGTH, SIZE]."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(backcopy.SIZE, _WIDTH)
        self.places = nn.Parameter(torch.empty(backcopy.LENGTH, _WIDTH))
        self.layers = nn.ModuleList(_Block() for _ in range(_LAYERS))
        self.norm = nn.RMSNorm(_WIDTH, eps=1e-6)
        self.head = nn.Linear(_WIDTH, backcopy.SIZE, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                last = name.endswith(("o.weight", "down.weight"))  # as GPT-2
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * _LAYERS) if last else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.tokens(input_ids) + self.places
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def _captured(net: nn.Module) -> Module:
    ids = torch.zeros(2, backcopy.LENGTH, dtype=torch.long)
    sizes = {"input_ids": {0: "batch"}}
    return regraft.capture(net.eval(), (), {"input_ids": ids}, dynamic_shapes=sizes)


def _make(variant: str) -> nn.Module:
    made = _captured(BackcopyLm())
    if VARIANTS[variant]:
        passes = f"canonicalize,replace-softmax{{variant={VARIANTS[variant]}}}"
        (*_, record) = regraft.apply(made, passes, check="off")
        assert record.stats["replaced"] == _LAYERS
    return regraft.to_torch(made)


def _loss(net: nn.Module, seed: int, step: int) -> Tensor:
    ids = backcopy.draw(seed, step, _BATCH)
    wanted = torch.from_numpy(backcopy.probabilities(ids).astype(np.float32))
    logits: Any = net(torch.from_numpy(ids))
    return nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(0, 1))


def _save(net: Any, folder: Path) -> None:
    torch.save(net.state_dict(), folder / _FILE)


def _load(variant: str, folder: Path) -> nn.Module:
    net = _make(variant)
    net.load_state_dict(torch.load(folder / _FILE, weights_only=True))
    return net.eval()


def _kind(variant: str) -> Kind:
    options = VARIANTS[variant].replace(",", "-")
    return Kind(
        f"backcopy-lm-{options or variant}", 1, partial(_make, variant), _loss, _SCHEDULE,
        corpus.digest, partial(backcopy.held_out, 256, 32), _save, partial(_load, variant),
    )  # fmt: skip


_KINDS = {name: _kind(name) for name in VARIANTS}
