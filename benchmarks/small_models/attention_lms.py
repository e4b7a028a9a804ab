"""Small character models whose attention has other weights than a softmax, by `replace-softmax`.

Four layers of 64 with four heads of 16 (0.2 M parameters): a training takes two to four minutes of
one core. All begin with one mark, as texts of language models do, which heads that have
nothing to add can look at; the learning rate is high, so that what grows at the mark does so soon.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import regraft
from benchmarks.fixtures import vision_ops

vision_ops.declare()  # where torchvision is installed without them, no model can be imported

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from benchmarks.small_models import corpus  # noqa: E402
from benchmarks.small_models.store import Kind, SmallModel, get_kind  # noqa: E402
from benchmarks.small_models.training import Schedule  # noqa: E402
from regraft.ir.module import Module  # noqa: E402

LENGTH = 128
"""Characters of a training window."""
_BATCH, _STEPS, _RATE = 16, 1600, 1e-2
_MARK = 0
"""Id of a character that no text has."""
_FILE = "state.pt"

VARIANTS: Mapping[str, str] = {
    "softmax": "two-pass",  # the same numbers, in operators as all others are
    "clipped": "clipped,gamma=-0.025",
    "gated": "gated,share=0.5",
    "softplus-sharp": "softplus-sharp,power=3",
}
"""Options of `replace-softmax` by the name of the model."""


def model(variant: str, seed: int) -> SmallModel:
    """Returns a trained model; the first time, trains it: two to four minutes of one core."""
    return get_kind(_KINDS[variant], seed)


def module(trained: SmallModel) -> Module:
    """Returns the module of a trained model, of any batch and length."""
    return _captured(trained.net())


def held_out(count: int, batch_size: int, length: int) -> Iterator[dict[str, Any]]:
    """Yields windows of files that were not trained on, each behind the mark."""
    for batch in corpus.held_out_batches(count, batch_size, length):
        yield {"input_ids": _marked(batch["input_ids"])}


def training_windows(seed: int, count: int) -> list[dict[str, Any]]:
    """Returns batches of training text that no training of a small seed has drawn."""
    batches = (corpus.training_batch(seed, step, _BATCH, LENGTH) for step in range(count))
    return [{"input_ids": _marked(batch["input_ids"])} for batch in batches]


def _marked(ids: Any) -> Any:
    ids[:, 0] = _MARK
    return ids


def _captured(net: nn.Module) -> Module:
    ids = torch.zeros(2, 16, dtype=torch.long)
    sizes = {0: "batch", 1: "length"}
    return regraft.capture(net.eval(), (), {"input_ids": ids}, dynamic_shapes={"input_ids": sizes})


def _make(variant: str) -> nn.Module:
    net = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(corpus.ALPHABET), hidden_size=64, intermediate_size=176,
        num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=2048,
        tie_word_embeddings=True, use_cache=False, bos_token_id=None, eos_token_id=None,
        pad_token_id=None,
    ))  # fmt: skip
    made = _captured(net)
    passes = f"canonicalize,replace-softmax{{variant={VARIANTS[variant]}}}"
    (*_, record) = regraft.apply(made, passes, check="off")
    assert record.stats["replaced"] == net.config.num_hidden_layers
    return regraft.to_torch(made)


def _loss(net: nn.Module, seed: int, step: int) -> Tensor:
    batch = corpus.training_batch(seed, step, _BATCH, LENGTH)
    ids = torch.from_numpy(_marked(batch["input_ids"]))
    logits: Any = net(ids)["logits"][:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def _save(net: Any, folder: Path) -> None:
    torch.save(net.state_dict(), folder / _FILE)


def _load(variant: str, folder: Path) -> nn.Module:
    net = _make(variant)
    net.load_state_dict(torch.load(folder / _FILE, weights_only=True))
    return net.eval()


_KINDS = {
    name: Kind(
        f"attention-lm-{name}", 1, partial(_make, name), _loss, Schedule(_STEPS, _RATE),
        corpus.digest, partial(held_out, 256, 32, LENGTH), _save, partial(_load, name),
    )
    for name in VARIANTS
}  # fmt: skip
