"""Example arguments of a model and which of their axes may change, from its config and files."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from regraft.frontends.huggingface.checkpoint import read_json
from regraft.frontends.huggingface.tokenizers import read_tokenizer
from regraft.ir.errors import UnsupportedError, UsageError

PREFILL = "prefill"
DECODE = "decode"
FORMS = (PREFILL, DECODE)
"""A decoder without a cache, or with one that it takes and returns."""

SEQ, PAST, TOTAL = "seq", "past", "total"
"""Names of sizes: of new tokens, of those in a cache, and of both."""

_BATCH, _SEQ, _DECODED, _PAST = 2, 8, 5, 3
_SENTENCE = "The quick brown fox jumps over the lazy dog and runs away."


@dataclass(slots=True)
class Example:
    """Keyword arguments of a model and their dynamic axes by name.

    Attributes:
        kwargs: The arguments.
        axes: Names of sizes by axis, by argument.
    """

    kwargs: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, dict[int, str]] = field(default_factory=dict)

    def add(self, name: str, value: Any, *axes: str | None) -> None:
        """Adds an argument; an axis without a name keeps its size."""
        self.kwargs[name] = value
        named = {axis: each for axis, each in enumerate(axes) if each is not None}
        if named:
            self.axes[name] = named


def example_of(model: Any, folder: Path, form: str = PREFILL) -> Example:
    """Returns example arguments of a model.

    Args:
        model: The model.
        folder: Where tokenizer and processor files lie, if there are any.
        form: `prefill`, or `decode` for a decoder with a cache.

    Raises:
        UsageError: When the model has no such form.
        UnsupportedError: When the model takes other things than text, images and sound.
    """
    if form not in FORMS:
        raise UsageError(f"unknown form `{form}`", hint=", ".join(FORMS))
    takes = inspect.signature(model.forward).parameters
    config, example = model.config, Example()
    is_decoder = "past_key_values" in takes and not config.is_encoder_decoder
    if form == DECODE and not is_decoder:
        raise UsageError(
            f"`{type(model).__name__}` is no decoder with a cache", hint="leave out `form`"
        )
    if "input_ids" in takes:
        _add_text(example, model, takes, folder, form)
    generates = "input_ids" in takes and model.can_generate()
    if "pixel_values" in takes and not generates:
        _add_image(example, config, folder, "images" if "input_ids" in takes else "batch")
    if "input_features" in takes:
        _add_sound(example, config)
    elif "input_values" in takes:
        example.add("input_values", torch.randn(_BATCH, 16_000), "batch", "samples")
    if config.is_encoder_decoder:
        ids = torch.arange(3, 3 + _BATCH * _DECODED).reshape(_BATCH, _DECODED) % _words(config)
        example.add("decoder_input_ids", ids, "batch", "decoded")
    if not example.kwargs:
        raise UnsupportedError(
            f"`{type(model).__name__}` takes {', '.join(takes)}, none of which is known",
            hint="load it in Python and give the module with its arguments: `regraft.capture`",
        )
    if "use_cache" in takes:
        example.kwargs["use_cache"] = form == DECODE
    return example


def _add_text(
    example: Example, model: Any, takes: Mapping[str, Any], folder: Path, form: str
) -> None:
    config = model.config
    ids = _ids(config, folder)
    example.add("input_ids", ids, "batch", SEQ)
    mask = torch.ones_like(ids)
    if form == DECODE:
        # a cache is full as far as it goes; the mask covers it and the new tokens
        example.kwargs["past_key_values"] = _cache(config, ids.shape[0])
        example.axes["past_key_values"] = {0: "batch", 2: PAST}
        mask = torch.ones(ids.shape[0], ids.shape[1] + _PAST, dtype=torch.int64)
    if "attention_mask" in takes:
        example.add("attention_mask", mask, "batch", TOTAL if form == DECODE else SEQ)
    if "token_type_ids" in takes and getattr(config, "type_vocab_size", 0) > 1:
        example.add("token_type_ids", torch.zeros_like(ids), "batch", SEQ)


def _words(config: Any) -> int:
    return int(config.get_text_config().vocab_size)


def _ids(config: Any, folder: Path) -> torch.Tensor:
    """Returns ids of two sentences: the tokenizer's where there is one, else numbers in range."""
    words, file = _words(config), folder / "tokenizer.json"
    if file.is_file():
        found = [i for i in read_tokenizer(file).encode(_SENTENCE).ids if i < words]
        if len(found) >= _SEQ:
            row = torch.tensor(found[:_SEQ])
            return torch.stack([row, row.flip(0)])
    return (torch.arange(3, 3 + _BATCH * _SEQ) % words).reshape(_BATCH, _SEQ)


def _cache(config: Any, rows: int) -> DynamicCache:
    text = config.get_text_config(decoder=True)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache = DynamicCache()
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    for layer in range(text.num_hidden_layers):
        past = torch.zeros(rows, heads, _PAST, size, dtype=dtype)
        cache.update(past, past.clone(), layer)
    return cache


def _add_image(example: Example, config: Any, folder: Path, batch: str) -> None:
    vision = getattr(config, "vision_config", None) or config
    size = getattr(vision, "image_size", None) or _processor_size(folder) or 224
    height, width = size if isinstance(size, list | tuple) else (size, size)
    channels = int(getattr(vision, "num_channels", 3))
    pixels = torch.randn(_BATCH, channels, int(height), int(width))
    example.add("pixel_values", pixels, batch)


def _processor_size(folder: Path) -> tuple[int, int] | None:
    """Returns height and width that the processor makes."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return None
    content = read_json(file)
    for key in ("crop_size", "size"):
        size = content.get(key)
        if isinstance(size, int):
            return size, size
        if isinstance(size, dict) and {"height", "width"} <= size.keys():
            return int(size["height"]), int(size["width"])
        if isinstance(size, dict) and "shortest_edge" in size:
            return int(size["shortest_edge"]), int(size["shortest_edge"])
    return None


def _add_sound(example: Example, config: Any) -> None:
    bins, positions = config.num_mel_bins, getattr(config, "max_source_positions", 1500)
    # two frames per position of the encoder, which wants all of them
    example.add("input_features", torch.randn(_BATCH, bins, 2 * positions), "batch")
