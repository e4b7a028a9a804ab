"""The pass `sparsify-activations`: what goes, how much, and what that costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from regraft.backends.onnx.activations import OrtActivations
from regraft.backends.onnx.legalize import legalizers
from regraft.backends.onnx.runtime import OrtRunner
from regraft.backends.onnx.save import to_proto
from regraft.ir.errors import UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.text import parse_module
from regraft.ir.verify import verify
from regraft.ir.weights import ArrayWeight
from regraft.passes.activation_sparsity.cuts import Cut, threshold_of
from regraft.passes.activation_sparsity.places import gates
from regraft.passes.activation_sparsity.sparsify_activations import SparsifyActivations
from regraft.passes.legalize import Legalize
from regraft.passes.protocol import Context

Array = np.ndarray[Any, Any]

GATED = """
module "gated"
symbol B
weight @gate : f32[32, 128] role=param = random(1)
weight @up : f32[32, 128] role=param = random(2)
weight @down : f32[128, 32] role=param = random(3)
graph(%x : f32[B, 32]) {
  %gate = weight @gate
  %up = weight @up
  %down = weight @down
  %g = matmul(%x, %gate)
  %u = matmul(%x, %up)
  %s = sigmoid(%g)
  %a = mul(%g, %s)
  %h = mul(%a, %u)
  %y = matmul(%h, %down)
  return %y
}
"""


def net() -> Module:
    module = parse_module(GATED)
    rng = np.random.default_rng(3)
    # channels of very different sizes, as in trained models
    wide = module.weights["up"].numpy() * np.exp(1.5 * rng.standard_normal(128)).astype(np.float32)
    module.weights.set("up", ArrayWeight(wide.astype(np.float32)))
    return module


def samples(count: int, seed: int = 0) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((64, 32)).astype(np.float32)} for _ in range(count)]


def context() -> Context:
    return Context(
        samples=samples(16), activations=OrtActivations(), legalizers=legalizers(), target="ort-cpu"
    )


def lost(module: Module, reference: Module) -> float:
    given = samples(4, seed=7)
    pairs = [(evaluate(module, s)["y"], evaluate(reference, s)["y"]) for s in given]
    off = sum(float(np.square(a - b).sum()) for a, b in pairs)
    return off / sum(float(np.square(b).sum()) for _, b in pairs)


def realized(module: Module, reference: Module) -> float:
    """Returns the fraction of zeros in what is cut, on samples that nothing was calibrated on."""
    cuts = [node for node in module.graph if node.op.name == "where"]
    found = OrtActivations().activations(module, [cut.output for cut in cuts], samples(8, seed=9))
    zeros = [(array == 0).mean() for item in found for array in item.values()]
    return float(np.mean(zeros))


def test_keeping_all_changes_nothing() -> None:
    for method in ("wina", "magnitude"):
        module = net()
        SparsifyActivations(method=method, rate=0.0).run(module, context())
        sample = samples(1)[0]
        np.testing.assert_array_equal(evaluate(module, sample)["y"], evaluate(net(), sample)["y"])


def test_weights_tell_better_than_numbers_alone_what_counts() -> None:
    """Columns scaled by e^N(0, 1), half of the entries kept."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((256, 64)) * np.exp(rng.standard_normal((256, 1)))
    x = rng.standard_normal((200, 256))
    norms = np.linalg.norm(matrix, axis=1)
    errors = [
        float(np.linalg.norm((Cut(weights, kept=128).apply(x) - x) @ matrix))
        for weights in (norms, np.ones(256))
    ]
    assert errors[0] < 0.5 * errors[1]
    for kept in (1, 100, 256):
        assert ((Cut(norms, kept=kept).apply(x) != 0).sum(-1) == kept).all()


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.7])
@pytest.mark.parametrize("method", ["wina", "magnitude", "chess"])
def test_realized_sparsity_is_within_a_point_of_the_target(method: str, rate: float) -> None:
    module = net()
    item = SparsifyActivations(method=method, rate=rate, cut="threshold")  # type: ignore[arg-type]
    result = item.run(module, context())
    verify(module)
    assert result.stats["places"] == (1 if method == "chess" else 2)
    # thresholds are found on these
    assert result.stats["realized"] == pytest.approx(rate, abs=1e-3)
    assert realized(module, net()) == pytest.approx(rate, abs=0.01)


def test_thresholds_per_channel_lose_less_than_one_for_all() -> None:
    reference = net()
    module = net()
    SparsifyActivations(method="chess", rate=0.6).run(module, context())
    (place,), _ = gates(reference, (), ())
    rows = [
        item[place.value]
        for item in OrtActivations().activations(reference, [place.value], samples(16))
    ]
    single = Cut(np.ones(128, np.float32), threshold=threshold_of([np.abs(r) for r in rows], 0.6))
    given = samples(4, seed=7)
    values = list(OrtActivations().activations(reference, [place.value, place.partner], given))  # type: ignore[list-item]
    down = reference.weights["down"].numpy()
    off = scale = 0.0
    for item in values:
        gate, up = item[place.value], item[place.partner]  # type: ignore[index]
        assert (single.apply(gate) == 0).mean() == pytest.approx(0.6, abs=0.02)
        off += float(np.square(((single.apply(gate) - gate) * up) @ down).sum())
        scale += float(np.square((gate * up) @ down).sum())
    assert lost(module, reference) < 0.5 * off / scale


def test_products_of_what_is_kept_equal_masked_ones() -> None:
    """What a kernel that skips zeros computes."""
    module = net()
    SparsifyActivations(method="chess", rate=0.7).run(module, context())
    sample = {"x": samples(1)[0]["x"][:1]}
    (cut,) = (node.output for node in module.graph if node.op.name == "where")
    (product,) = (
        node.output for node in module.graph if node.op.name == "mul" and cut in node.inputs
    )
    (item,) = OrtActivations().activations(module, [product, module.graph.outputs[0]], [sample])
    kept = np.flatnonzero(item[product][0])
    assert len(kept) < 64
    skipped = item[product][0, kept] @ module.weights["down"].numpy()[kept]
    want = item[module.graph.outputs[0]][0]
    np.testing.assert_allclose(skipped, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("method", ["wina", "magnitude", "chess"])
@pytest.mark.parametrize("cut", ["rank", "threshold"])
def test_onnx_runtime_computes_the_cuts(method: str, cut: str) -> None:
    module, ctx = net(), context()
    SparsifyActivations(method=method, cut=cut).run(module, ctx)  # type: ignore[arg-type]
    sample = samples(1, seed=5)[0]
    want = evaluate(module, sample)["y"]
    Legalize("ort-cpu").run(module, ctx)
    (got,) = OrtRunner(to_proto(module, profile="ort-cpu"))(sample).values()
    # entries at a threshold may fall on either side by a rounding: none does here
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_a_value_that_several_read_is_cut_once_and_others_are_named() -> None:
    module = net()
    result = SparsifyActivations(only=("gate", "up")).run(module, context())
    assert len([node for node in module.graph if node.op.name == "where"]) == 1
    assert [(skip.node, skip.reason) for skip in result.skipped] == [
        ("down", "not named by option")
    ]
    assert result.layers[0].name == "gate"


def test_blocks_without_gates_and_missing_samples_are_said() -> None:
    plain = parse_module(
        GATED.replace("%h = mul(%a, %u)", "%h = add(%a, %a)").replace(
            "  %up = weight @up\n", ""
        ).replace("  %u = matmul(%x, %up)\n", "")
        .replace("weight @up : f32[32, 128] role=param = random(2)\n", "")
    )  # fmt: skip
    result = SparsifyActivations(method="chess").run(plain, context())
    assert not result.changed
    with pytest.raises(UsageError, match="needs samples"):
        SparsifyActivations(method="chess").run(net(), Context(activations=OrtActivations()))
    with pytest.raises(UsageError, match="is not from 0 to below 1"):
        SparsifyActivations(rate=1.0).run(net(), context())
