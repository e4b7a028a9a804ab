"""Two language models of the Llama family: characters of Python's sources, and the copy task."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

from benchmarks.fixtures import vision_ops

vision_ops.declare()  # where torchvision is installed without them, no model can be imported

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from benchmarks.small_models import copying, corpus  # noqa: E402

CHAR_LENGTH = 128
"""Characters of a training window."""
_CHAR_BATCH = 16
_CHAR_WINDOWS = 256

COPY_LENGTHS = (4, 16)
"""Letters of a string in training."""
_COPY_BATCH = 32
_COPY_STRINGS = 256

_NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def make_char_lm() -> nn.Module:
    """Returns the untrained model: 6 layers of 128, 4 heads of 32, SwiGLU of 352, tied embeddings.

    1.22 M parameters.
    """
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(corpus.ALPHABET), hidden_size=128, intermediate_size=352,
        num_hidden_layers=6, num_attention_heads=4, max_position_embeddings=2048,
        tie_word_embeddings=True, **_NO_TOKENS,
    ))  # fmt: skip


def char_loss(net: nn.Module, seed: int, step: int) -> Tensor:
    batch = corpus.training_batch(seed, step, _CHAR_BATCH, CHAR_LENGTH)
    ids = torch.from_numpy(batch["input_ids"])
    return _next_token_loss(net, ids, ids)


def char_held_out() -> Iterator[corpus.Batch]:
    """Yields windows of files that were not trained on."""
    return corpus.held_out_batches(_CHAR_WINDOWS, 32, CHAR_LENGTH)


def make_copy_lm() -> nn.Module:
    """Returns the untrained model: 2 layers of 64, 4 heads of 16, SwiGLU of 160.

    0.10 M parameters.
    """
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=copying.FIRST_LETTER + copying.NUM_LETTERS, hidden_size=64,
        intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, tie_word_embeddings=False, **_NO_TOKENS,
    ))  # fmt: skip


def copy_loss(net: nn.Module, seed: int, step: int) -> Tensor:
    batch = copying.training_batch(seed, step, _COPY_BATCH, *COPY_LENGTHS)
    ids, labels = (torch.from_numpy(batch[name]) for name in ("input_ids", "labels"))
    return _next_token_loss(net, ids, labels)


def copy_held_out() -> Iterator[copying.Batch]:
    """Yields strings of the longest length that was trained."""
    return copying.held_out(_COPY_STRINGS, 64, COPY_LENGTHS[1])


def _next_token_loss(net: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    logits: Any = net(ids).logits[:, :-1]
    return nn.functional.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=copying.IGNORED
    )


def save_llama(net: Any, folder: Path) -> None:
    """Saves a model as a folder of `transformers`."""
    net.save_pretrained(folder)


def save_char_lm(net: Any, folder: Path) -> None:
    """Saves the character model with its tokenizer, one token per character."""
    save_llama(net, folder)
    vocabulary = {each: idx for idx, each in enumerate(corpus.ALPHABET)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=corpus.UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
