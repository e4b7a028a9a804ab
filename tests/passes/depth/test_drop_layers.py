"""Layers that are left out: what the rest computes, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import regraft
from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.errors import UnsupportedError, UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.text import parse_module
from regraft.ir.verify import verify
from regraft.ir.weights import ArrayWeight
from regraft.passes.depth.drop_layers import DropLayers
from regraft.passes.protocol import Context

NUM_LAYERS = 4


def _stack(extra_output: str = "", axes: str = "B", mask: str = "") -> Module:
    """Returns layers `h + relu(h @ up) @ down`; each is one matrix product and its bias apart."""
    lines = ['module "stack"', *(f"symbol {each}" for each in axes.split(", "))]
    for i in range(NUM_LAYERS):
        lines += [
            f'weight @"{i}.up" : f32[8, 16] role=param = random({2 * i})',
            f'weight @"{i}.down" : f32[16, 8] role=param = random({2 * i + 1})',
        ]
    lines.append(f"graph(%h0 : f32[{axes}, 8]{mask}) {{")
    for i in range(NUM_LAYERS):
        lines += [
            f'  %u{i} = weight @"{i}.up"',
            f"  %m{i} = matmul(%h{i}, %u{i})",
            f"  %r{i} = relu(%m{i})",
            f'  %d{i} = weight @"{i}.down"',
            f"  %p{i} = matmul(%r{i}, %d{i})",
            f"  %h{i + 1} = add(%h{i}, %p{i})",
        ]
    lines += [f"  %out = tanh(%h{NUM_LAYERS})", f"  return %out{extra_output}", "}"]
    return parse_module("\n".join(lines))


def _by_hand(module: Module, x: np.ndarray, kept: list[int]) -> np.ndarray:
    weights = {name: module.weights[name].numpy() for name in module.weights}
    for i in kept:
        x = x + np.maximum(x @ weights[f"{i}.up"], 0) @ weights[f"{i}.down"]
    result: np.ndarray = np.tanh(x)
    return result


@pytest.mark.parametrize("dropped", [[0], [3], [1, 2], [0, 1, 3]])
def test_the_rest_is_a_model_without_them(dropped: list[int]) -> None:
    module, source = _stack(), _stack()
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    numbers = ",".join(map(str, reversed(dropped)))
    (record,) = regraft.apply(module, f"drop-layers{{layers=[{numbers}]}}", check="off")
    verify(module)
    kept = [i for i in range(NUM_LAYERS) if i not in dropped]
    assert record.stats["layers"] == len(kept)
    assert {name.split(".")[0] for name in module.weights} == {str(i) for i in kept}
    got = evaluate(module, {"h0": x})["out"]
    # a few layers of sums of 16 products, in another order
    eps = float(np.finfo(np.float32).eps)
    np.testing.assert_allclose(got, _by_hand(source, x, kept), rtol=0, atol=64 * eps)
    assert np.abs(got - evaluate(source, {"h0": x})["out"]).max() > 0.01


def test_unknown_layers_are_refused() -> None:
    with pytest.raises(UsageError, match=r"no layer 4\n.*4 repeated layers, 0 to 3"):
        regraft.apply(_stack(), "drop-layers{layers=[1,4]}", check="off")
    with pytest.raises(UsageError, match="names no layer"):
        regraft.apply(_stack(), "drop-layers{layers=[]}", check="off")


def test_layers_that_give_more_than_the_stream_are_refused() -> None:
    module = _stack(", %r2")
    before = str(module)
    with pytest.raises(UnsupportedError, match="layer 2 gives `r2`"):
        regraft.apply(module, "drop-layers{layers=[2]}", check="off")
    assert str(module) == before
    regraft.apply(module, "drop-layers{layers=[1]}", check="off")
    assert module.graph.output_names == ["out", "r2"]


def test_count_removes_the_layers_that_turn_the_stream_least() -> None:
    module = _stack()
    small = module.weights["2.down"].numpy() * np.float32(0.01)
    module.weights.set("2.down", ArrayWeight(small))
    rng = np.random.default_rng(0)
    samples = [{"h0": rng.standard_normal((5, 8)).astype(np.float32)} for _ in range(2)]
    again = module.clone()
    (record,) = regraft.apply(module, "drop-layers{count=1}", check="off", samples=samples)
    assert record.decisions["layers"] == [2]
    assert record.stats["influence-2"] < min(
        record.stats[f"influence-{i}"] for i in range(NUM_LAYERS) if i != 2
    )
    regraft.apply(again, "drop-layers{layers=[2]}", check="off")
    assert str(module) == str(again)


def test_positions_that_are_filled_up_have_no_say() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((1, size, 8)).astype(np.float32) for size in (3, 5)]
    padded = np.full((2, 64, 8), 7, np.float32)
    counts = np.zeros((2, 64), np.int64)
    for idx, row in enumerate(rows):
        padded[idx, : row.shape[1]], counts[idx, : row.shape[1]] = row, 1
    samples: dict[str, list[dict[str, np.ndarray]]] = {
        "": [{"h0": row} for row in rows],
        ", %attention_mask : i64[B, S]": [{"h0": padded, "attention_mask": counts}],
    }
    found = []
    for mask, data in samples.items():
        module = _stack(axes="B, S", mask=mask)
        (record,) = regraft.apply(module, "drop-layers{count=1}", check="off", samples=data)
        found.append([record.stats[f"influence-{i}"] for i in range(NUM_LAYERS)])
    eps = float(np.finfo(np.float32).eps)  # sums of 16 products of f32, in another order
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=64 * eps)


def test_samples_in_which_nothing_counts_are_refused() -> None:
    module = _stack(axes="B, S", mask=", %attention_mask : i64[B, S]")
    sample = {"h0": np.ones((1, 2, 8), np.float32), "attention_mask": np.zeros((1, 2), np.int64)}
    with pytest.raises(UsageError, match="no position of the samples counts"):
        regraft.apply(module, "drop-layers{count=1}", check="off", samples=[sample])


def test_count_says_what_it_needs() -> None:
    with pytest.raises(UsageError, match="layers are chosen on samples"):
        DropLayers(count=1).run(_stack(), Context(activations=OrtActivations()))
    with pytest.raises(UsageError, match="not both"):
        DropLayers(layers=(0,), count=1).run(_stack(), Context())
