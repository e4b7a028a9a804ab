"""The models that become packages: those of `transformers`, small, and the trained encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.fixtures.vision_ops import declare


@dataclass(frozen=True, slots=True)
class Subject:
    """A model and how it is converted.

    Args:
        build: Makes the model and a call of it: arguments by position and by name.
        passes: Of the conversion.
        called: Kernels that its package calls.
        tolerance: Of outputs and losses against the torch backend, of the largest output. Sums of
            f32 differ in order; codes of 8 bits of activations round to a neighbour here and
            there, in each of the layers.
    """

    build: Callable[[], tuple[Any, tuple[Any, ...], dict[str, Any]]]
    passes: str
    called: tuple[str, ...]
    tolerance: float = 1e-5


_WORDS, _WIDTH, _HEADS = 96, 64, 4
_CACHE = {"use_cache": False}
_PLAIN = "canonicalize,fuse"


def _tokens() -> Any:
    import torch

    return torch.arange(7)[None] * 5 % 50


def _masked_tokens() -> tuple[Any, Any]:
    """Returns two texts of the encoder's words, the second of four tokens."""
    import torch

    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, 4:] = 0
    return torch.cat([_tokens(), _tokens() + 3]) + 1000, mask


def encoder() -> Any:
    declare()  # before transformers looks for them
    from transformers import AutoModel

    from benchmarks.encoder import folder

    return AutoModel.from_pretrained(folder(), local_files_only=True), _masked_tokens(), {}


def gpt() -> Any:
    declare()
    import transformers

    config = transformers.GPT2Config(
        n_layer=2, n_embd=_WIDTH, n_head=_HEADS, vocab_size=_WORDS, n_positions=64,
        attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config), (_tokens(),), _CACHE


def _sizes() -> dict[str, Any]:
    return {
        "hidden_size": _WIDTH, "intermediate_size": 96, "num_attention_heads": _HEADS,
        "num_key_value_heads": 2, "vocab_size": _WORDS, "max_position_embeddings": 64,
        "eos_token_id": 1,
    }  # fmt: skip


def llama() -> Any:
    declare()
    import transformers

    config = transformers.LlamaConfig(num_hidden_layers=2, **_sizes())
    return transformers.LlamaForCausalLM(config), (_tokens(),), _CACHE


def mixtral() -> Any:
    declare()
    import transformers

    config = transformers.MixtralConfig(num_hidden_layers=1, num_local_experts=4, **_sizes())
    return transformers.MixtralForCausalLM(config), (_tokens(),), _CACHE


def vit() -> Any:
    declare()
    import torch
    import transformers

    config = transformers.ViTConfig(
        hidden_size=_WIDTH, num_hidden_layers=2, num_attention_heads=_HEADS,
        intermediate_size=128, image_size=32, patch_size=8, num_labels=10,
    )  # fmt: skip
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return transformers.ViTForImageClassification(config), (image,), {}


_CODES = 3e-2

SUBJECTS: Mapping[str, Mapping[str, Subject]] = {
    "encoder": {
        "MiniLM": Subject(encoder, _PLAIN, ("attention", "add_layer_norm", "linear")),
    },
    "gpt": {
        "GPT-2": Subject(gpt, _PLAIN, ("attention", "layer_norm_linear", "linear_add")),
        "Llama": Subject(
            llama, _PLAIN,
            ("attention", "rms_norm", "rope", "linear_add_rms_norm"),
        ),
    },
    "vit": {"ViT": Subject(vit, _PLAIN, ("attention", "layer_norm", "linear_add"))},
    "linearized": {
        "Llama, elu": Subject(
            llama, f"{_PLAIN},linearize-attention{{method=elu}}", ("linear_attention",)
        ),
        "Llama, hedgehog": Subject(
            llama, f"{_PLAIN},linearize-attention{{method=hedgehog}}", ("linear_attention",)
        ),
        "GPT-2, lightning": Subject(
            gpt, f"{_PLAIN},linearize-attention{{method=lightning}}", ("linear_attention",)
        ),
    },
    "experts": {
        "GPT-2, upcycled": Subject(
            gpt, f"{_PLAIN},upcycle-ffn{{experts=4,top-k=2}}", ("experts", "attention")
        ),
        "Llama, upcycled": Subject(
            llama, f"{_PLAIN},upcycle-ffn{{experts=4,top-k=2}}", ("experts", "attention")
        ),
        "Mixtral": Subject(mixtral, _PLAIN, ("experts", "attention")),
    },
    "int4": {
        "GPT-2": Subject(
            gpt, f"{_PLAIN},quantize{{weights=int4,group=32}}", ("low_bit_linear", "attention")
        ),
        "MiniLM": Subject(
            encoder, f"{_PLAIN},quantize{{weights=int4,group=32}}", ("low_bit_linear", "attention")
        ),
    },
    "int8": {
        "ViT": Subject(vit, f"{_PLAIN},quantize", ("attention",), _CODES),
        "MiniLM": Subject(encoder, f"{_PLAIN},quantize", ("attention",), _CODES),
        "Llama, activations static": Subject(
            llama, f"{_PLAIN},quantize{{activations=static}}", ("attention",), _CODES
        ),
    },
}  # fmt: skip
