"""Blocks in few bits, fitted as a whole: FlexRound by blocks, and the three stages of I&S-ViT."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.errors import TargetError, UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.extract import with_outputs
from regraft.ir.module import Module
from regraft.ir.text import parse_module
from regraft.ir.weights import ArrayWeight
from regraft.passes.block_quantization import QuantizeBlocks
from regraft.passes.protocol import Context
from regraft.passes.quantization import Quantize
from tests.backends.torch.models import torch

from regraft.backends.torch.library.quantizing import rounded_to_range  # isort: skip  # needs torch
from regraft.backends.torch.training import TorchTrainer  # isort: skip

WIDTH, INNER, BLOCKS, GROUP = 24, 48, 2, 8


def network(seed: int = 0) -> Module:
    """Returns two blocks of a norm, a layer, a gelu and a layer, and a head."""
    weights, lines = [], []
    for idx in range(BLOCKS):
        for name, shape in (
            ("up", f"{WIDTH}, {INNER}"), ("ub", f"{INNER}"), ("down", f"{INNER}, {WIDTH}"),
            ("db", f"{WIDTH}"), ("gain", f"{WIDTH}"), ("bias", f"{WIDTH}"),
        ):  # fmt: skip
            weights.append(f"weight @{name}{idx} : f32[{shape}] role=param = random(1)")
            lines.append(f"  %{name}{idx} = weight @{name}{idx}")
        lines.append(f"""
  %n{idx} = layer_norm(%h{idx}, %gain{idx}, %bias{idx}) {{axis = -1, epsilon = 0.00001}}
  %m{idx} = matmul(%n{idx}, %up{idx})
  %u{idx} = add(%m{idx}, %ub{idx})
  %a{idx} = gelu(%u{idx})
  %p{idx} = matmul(%a{idx}, %down{idx})
  %d{idx} = add(%p{idx}, %db{idx})
  %h{idx + 1} = add(%h{idx}, %d{idx})""")
    body = "\n".join(lines).replace("%h0", "%x")
    text = "\n".join(weights)
    module = parse_module(
        f'module "blocks"\nsymbol B\n{text}\ngraph(%x : f32[B, {WIDTH}]) {{\n{body}\n'
        f"  %y = tanh(%h{BLOCKS})\n  return %y\n}}\n"
    )
    rng = np.random.default_rng(seed)
    for name in list(module.weights):
        shape = module.weights[name].shape
        if name.startswith("gain"):  # channels of a norm that one range does not fit
            array = rng.choice([0.3, 1.0, 4.0], shape)
        else:
            array = rng.normal(0, 0.1 if len(shape) == 1 else shape[0] ** -0.5, shape)
        module.weights.set(name, ArrayWeight(array.astype(np.float32)))
    return module


def batches(count: int = 8, seed: int = 1) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(WIDTH, WIDTH))  # channels that say alike things, as real ones do
    return [
        {"x": (rng.normal(size=(64, WIDTH)) @ mix / 4).astype(np.float32)} for _ in range(count)
    ]


def context() -> Context:
    return Context(
        samples=batches(), activations=OrtActivations(), trainer=TorchTrainer(progress=False)
    )


def loss(module: Module, before: Module) -> float:
    """Returns the mean square error on batches that nothing was fitted on."""
    unseen = batches(12)[8:]
    off = [evaluate(module, each)["y"] - evaluate(before, each)["y"] for each in unseen]
    return float(np.square(off).mean())


def quantized(options: Any) -> tuple[Module, Any]:
    module = network()
    result = options.run(module, context())
    return module, result


@pytest.mark.slow
def test_blocks_fitted_as_a_whole_lose_less_than_layers_fitted_alone() -> None:
    """The check of FlexRound: nearest codes, then layer by layer, then blocks."""
    before = network()
    nearest, _ = quantized(Quantize(weights="uint3", group=GROUP, method="search"))
    layers, _ = quantized(Quantize(weights="uint3", group=GROUP, method="flexround"))
    blocks, result = quantized(QuantizeBlocks(weights="uint3", group=GROUP, steps=250))
    assert result.stats["linear-layers"] == 2 * BLOCKS
    assert result.stats["loss-last"] < 0.6 * result.stats["loss-first"]
    assert loss(blocks, before) < 0.75 * loss(nearest, before)
    assert loss(blocks, before) < 0.95 * loss(layers, before)


def test_what_blocks_store_is_codes_of_the_format() -> None:
    module, result = quantized(QuantizeBlocks(weights="uint3", group=GROUP, steps=12))
    assert result.stats["loss-last"] < result.stats["loss-first"]
    codes = [name for name in module.weights if name.endswith(".codes")]
    assert len(codes) == 2 * BLOCKS
    for name in codes:
        array = module.weights[name].numpy().astype(np.int64)
        assert array.min() >= 0
        assert 4 < array.max() <= 7
    assert [layer.format for layer in result.layers] == ["uint3"] * BLOCKS
    assert all(0 < layer.error < 0.5 for layer in result.layers)
    assert result.layers[0].num_bytes < result.layers[0].float_bytes / 7


@pytest.mark.slow
def test_three_stages_lose_less_than_folding_and_rounding() -> None:
    """The check of I&S-ViT's tuning: both stages that fit take off error, and so does all of it."""
    before = network()
    plain, _ = quantized(QuantizeBlocks(
        weights="uint3", group=GROUP, inputs=3, steps=1, rate=1e-9, tune_rate=1e-9
    ))  # fmt: skip
    fitted, result = quantized(
        QuantizeBlocks(weights="uint3", group=GROUP, inputs=3, steps=100, tune_rate=1e-3)
    )
    stats = result.stats
    assert stats["norms"] == BLOCKS
    assert stats["tuned-last"] < 0.95 * stats["tuned-first"]
    assert stats["loss-last"] < 0.85 * stats["loss-first"]
    assert loss(fitted, before) < 0.85 * loss(plain, before)


def test_inputs_of_blocks_lie_in_one_range_after_the_fold() -> None:
    module, _ = quantized(QuantizeBlocks(weights="uint4", group=GROUP, inputs=3, steps=1))
    rounded = [node for node in module.graph if node.op.name == "quantize"]
    assert len(rounded) == 2 * BLOCKS
    for node in rounded:
        assert all(value is None or value.rank == 0 for value in node.inputs[1:])
    outputs = {f"q{idx}": node.output for idx, node in enumerate(rounded)}
    codes = evaluate(with_outputs(module, outputs), batches(1)[0])
    assert {int(array.max()) for array in codes.values()} == {7}


def test_rounding_to_a_range_passes_gradients_on_within_it() -> None:
    x = torch.tensor([-9.0, -0.26, 0.0, 0.3, 9.0], requires_grad=True)
    scale, zero = torch.tensor(0.02), torch.tensor(128, dtype=torch.uint8)
    y = rounded_to_range(x, scale, zero, 0, 255, torch.uint8)
    y.sum().backward()
    torch.testing.assert_close(y, torch.tensor([-2.56, -0.26, 0.0, 0.3, 2.54]))
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
    held = rounded_to_range(x.detach(), scale, zero, 0, 255, torch.uint8)
    torch.testing.assert_close(held, y.detach(), rtol=0, atol=1e-6)


def test_blocks_need_pytorch_samples_and_layers_that_repeat() -> None:
    module = network()
    with pytest.raises(UsageError, match="needs PyTorch"):
        QuantizeBlocks().run(module, Context(samples=batches()))
    with pytest.raises(UsageError, match="needs samples"):
        QuantizeBlocks().run(module, Context(trainer=TorchTrainer(progress=False)))
    with pytest.raises(UsageError, match="no integer format"):
        QuantizeBlocks(weights="nf4").run(module, context())
    with pytest.raises(UsageError, match="neither 0 nor 2 to 8"):
        QuantizeBlocks(inputs=1).run(module, context())
    flat = parse_module(
        'module "flat"\nsymbol B\nweight @w : f32[24, 24] role=param = random(1)\n'
        "graph(%x : f32[B, 24]) {\n  %w = weight @w\n  %y = matmul(%x, %w)\n  return %y\n}\n"
    )
    with pytest.raises(TargetError, match="no repeated layers"):
        QuantizeBlocks().run(flat, context())
