"""Whole models as packages, against `torch.compile(mode="max-autotune")`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import regraft
from benchmarks.fixtures.vision_ops import declare
from benchmarks.gpu.row import AUTOTUNED, GRAPHED, Row, Sizes, function, graphed
from regraft.backends.triton.package import load_package, save_package

_Built = tuple[nn.Module, Tensor, dict[str, Any]]


def _shape(sizes: Sizes) -> dict[str, int]:
    if sizes.is_tiny:
        return {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {"hidden_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 16}


def _tokens(sizes: Sizes) -> Tensor:
    return torch.zeros((1, 7) if sizes.is_tiny else (16, 512), dtype=torch.int64)


def _encoder(sizes: Sizes) -> _Built:
    import transformers

    shape = _shape(sizes)
    config = transformers.BertConfig(
        vocab_size=96, intermediate_size=4 * shape["hidden_size"], **shape
    )
    return transformers.BertModel(config, add_pooling_layer=False), _tokens(sizes), {}


def _decoder(sizes: Sizes) -> _Built:
    import transformers

    shape = _shape(sizes)
    config = transformers.LlamaConfig(
        vocab_size=96, intermediate_size=3 * shape["hidden_size"], eos_token_id=1, **shape
    )
    return transformers.LlamaForCausalLM(config), _tokens(sizes), {"use_cache": False}


def _gpt(sizes: Sizes) -> _Built:
    import transformers

    shape = _shape(sizes)
    config = transformers.GPT2Config(
        vocab_size=96, n_embd=shape["hidden_size"], n_layer=shape["num_hidden_layers"],
        n_head=shape["num_attention_heads"], eos_token_id=1, bos_token_id=1,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config), _tokens(sizes), {"use_cache": False}


def _vit(sizes: Sizes) -> _Built:
    import transformers

    shape = _shape(sizes)
    side, batch = (16, 1) if sizes.is_tiny else (224, 64)
    config = transformers.ViTConfig(
        intermediate_size=4 * shape["hidden_size"], image_size=side,
        patch_size=8 if sizes.is_tiny else 16, **shape,
    )  # fmt: skip
    image = torch.zeros(batch, 3, side, side, dtype=sizes.dtype)
    return transformers.ViTForImageClassification(config), image, {}


MODELS: Mapping[str, Callable[[Sizes], _Built]] = {
    "encoder": _encoder, "decoder": _decoder, "gpt": _gpt, "vit": _vit,
}  # fmt: skip


def model_rows(sizes: Sizes, device: str) -> Iterator[Iterator[Row]]:
    """Yields models of a few layers, each by itself, which need `transformers`."""
    for name in MODELS:
        yield _model_row(name, sizes, device)


def _model_row(name: str, sizes: Sizes, device: str) -> Iterator[Row]:
    declare()  # before transformers looks for them
    net, given, options = MODELS[name](sizes)
    net = net.to(sizes.dtype).eval().requires_grad_(requires_grad=False)
    module = regraft.capture(net, (given,), options)
    regraft.apply(module, "canonicalize,fuse", check="off")
    with tempfile.TemporaryDirectory() as folder:
        save_package(module, Path(folder))
        package = load_package(Path(folder)).to(device).requires_grad_(requires_grad=False)
    net = net.to(device)
    given = given.to(device)

    def eager(x: Tensor, net: nn.Module = net, options: Any = options) -> Any:
        return net(x, **options)

    def ours(x: Tensor, package: nn.Module = package, options: Any = options) -> Any:
        return package(x, **options)

    def inputs(given: Tensor = given) -> tuple[Tensor, ...]:
        return (given.clone(),)

    counter = FlopCounterMode(display=False)
    with counter:
        eager(given)
    tuned = torch.compile(eager, mode=AUTOTUNED, dynamic=False)
    own = function(ours, inputs)
    shape = "x".join(map(str, given.shape))
    yield Row(0, f"{name} of {_shape(sizes)['num_hidden_layers']} layers, {shape}", own,
              {GRAPHED: graphed(own), "eager": function(eager, inputs),
               AUTOTUNED: function(tuned, inputs)},
              flops=int(counter.get_total_flops()), goal="1.0x max-autotune")  # fmt: skip
