"""Small character models whose attention has other weights than a softmax, by `replace-softmax`.

Four layers of 64 with four heads of 16 (0.2 M parameters): a training takes two to three minutes of
one core. There are two texts. `long` is windows of 128 characters behind one mark. `packed` is
windows of short documents, 24 characters on average, each behind a mark, as language models are
trained on packed texts: what stands before a mark tells nothing about what follows, so that heads
often have nothing to add. That is what makes them look at marks, and outliers grow there
(Bondarenko et al., 2023, section 3); in windows of one text these models have little use for it.
The learning rate is high, so that what grows does so soon.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
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
_BATCH, _STEPS, _RATE = 16, 1000, 1e-2
_MARK = 0
"""Id of a character that no text has."""
_DOCUMENT = 24
"""Characters of a packed document, on average; its mark is one of them."""
_HELD_OUT_SEED = 999
_FILE = "state.pt"

VARIANTS: Mapping[str, str] = {
    "softmax": "",
    "clipped": "clipped,gamma=-0.1",
    "gated": "gated,share=0.5",
    "softplus-sharp": "softplus-sharp,power=3",
}
"""Options of `replace-softmax` by the name of the variant; none for the model as it is."""

Text = Literal["long", "packed"]


def model(variant: str, text: Text, seed: int) -> SmallModel:
    """Returns a trained model; the first time, trains it: two to three minutes of one core."""
    return get_kind(_KINDS[variant, text], seed)


def module(trained: SmallModel) -> Module:
    """Returns the module of a trained model, of any batch and length."""
    return _captured(trained.net())


def held_out(count: int, batch_size: int, length: int) -> Iterator[dict[str, Any]]:
    """Yields windows of files that were not trained on, each behind the mark."""
    for batch in corpus.held_out_batches(count, batch_size, length):
        yield {"input_ids": _marked(batch["input_ids"])}


def held_out_documents(count: int, batch_size: int) -> Iterator[dict[str, Any]]:
    """Yields windows of documents from files that were not trained on."""
    _, text = corpus.texts()
    for step in range(count // batch_size):
        yield {"input_ids": _packed(text, _HELD_OUT_SEED, step, batch_size)}


def training_windows(seed: int, count: int) -> list[dict[str, Any]]:
    """Returns windows of training documents that no training of a small seed has drawn."""
    return [{"input_ids": _batch("packed", seed, step)} for step in range(count)]


def _batch(text: Text, seed: int, step: int) -> Any:
    if text == "packed":
        return _packed(corpus.texts()[0], seed, step, _BATCH)
    return _marked(corpus.training_batch(seed, step, _BATCH, LENGTH)["input_ids"])


def _packed(text: Any, seed: int, step: int, count: int) -> Any:
    """Returns i64[count, LENGTH]: pieces from random places, each behind the mark."""
    rng = np.random.default_rng([seed, step])
    begins = rng.random((count, LENGTH)) < 1 / _DOCUMENT
    begins[:, 0] = True
    places = rng.integers(0, len(text) - LENGTH, (count, LENGTH))
    own = np.take_along_axis(places, begins.cumsum(1) - 1, 1)
    ids = text[own + np.arange(LENGTH)].astype(np.int64)
    ids[begins] = _MARK
    return ids


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
    if VARIANTS[variant]:
        passes = f"canonicalize,replace-softmax{{variant={VARIANTS[variant]}}}"
        (*_, record) = regraft.apply(made, passes, check="off")
        assert record.stats["replaced"] == net.config.num_hidden_layers
    return regraft.to_torch(made)


def _loss(text: Text, net: nn.Module, seed: int, step: int) -> Tensor:
    ids = torch.from_numpy(_batch(text, seed, step))
    logits: Any = net(ids)["logits"][:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def _save(net: Any, folder: Path) -> None:
    torch.save(net.state_dict(), folder / _FILE)


def _load(variant: str, folder: Path) -> nn.Module:
    net = _make(variant)
    net.load_state_dict(torch.load(folder / _FILE, weights_only=True))
    return net.eval()


def _kind(variant: str, text: Text) -> Kind:
    options = VARIANTS[variant].replace(",", "-")
    return Kind(
        f"attention-lm-{text}-{options or variant}", 1, partial(_make, variant),
        partial(_loss, text), Schedule(_STEPS, _RATE), corpus.digest,
        partial(held_out_documents, 256, 32), _save, partial(_load, variant),
    )  # fmt: skip


_TEXTS: tuple[Text, ...] = ("long", "packed")
_KINDS = {(name, text): _kind(name, text) for name in VARIANTS for text in _TEXTS}
