"""Weights that several layers share, layers of half precision, and layers that are left out."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from regraft import apply
from regraft.ir.errors import TargetError
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.text import parse_module
from regraft.ir.types import DType
from tests.passes.analysis.spelled import spelled

SHARED = "%h0 = add(%x, 0)\n" + "\n".join(
    f"%a{i} = matmul(%h{i}, %up)\n%r{i} = relu(%a{i})\n%b{i} = matmul(%r{i}, %down)\n"
    f"%s{i} = mul(%b{i}, 0.02)\n%h{i + 1} = add(%h{i}, %s{i})"
    for i in range(4)
) + "\n%y = tanh(%h4)"  # fmt: skip


def _shared() -> Module:
    return spelled(SHARED, weights={"up": "f32[16, 64]", "down": "f32[64, 16]"})


def _samples(kind: Any = np.float32) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((2, 5, 16)).astype(kind)} for _ in range(3)]


@pytest.mark.parametrize(
    "options",
    [
        "int8", "int8,activations=static", "int8,activations=dynamic", "int4", "int4,method=gptq",
    ],
)  # fmt: skip
def test_shared_weights_are_stored_once_and_their_uses_are_near(options: str) -> None:
    module, samples = _shared(), _samples()
    before = evaluate(module, samples[0])["y"]
    records = apply(module, f"quantize{{weights={options}}}", samples=samples, check="off")
    codes = [name for name in module.weights if name.endswith(".codes")]
    assert sorted(codes) == ["down.codes", "up.codes"]
    assert records[-1].stats["linear-layers"] == 8
    assert sorted(layer.name for layer in records[-1].layers) == ["down", "up"]
    after = evaluate(module, samples[0])["y"]
    # steps of 1/127 and of 1/7 of the largest of some dozen numbers, twice over four blocks
    tolerance = 0.03 if options.startswith("int8") else 0.2
    assert np.sqrt(np.square(after - before).mean()) < tolerance * np.sqrt(np.square(before).mean())


@pytest.mark.parametrize(("dtype", "kind"), [("f16", np.float16), ("bf16", ml_dtypes.bfloat16)])
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_layers_of_half_precision_are_quantized_and_give_what_they_gave(
    dtype: str, kind: Any, weights: str
) -> None:
    module = spelled(
        "%h = matmul(%x, %up)\n%b = add(%h, %bias)\n%g = gelu(%b)\n%y = matmul(%g, %down)",
        dtype=dtype,
        weights={"up": f"{dtype}[16, 64]", "down": f"{dtype}[64, 16]", "bias": f"{dtype}[64]"},
    )
    samples = _samples(kind)
    before = evaluate(module, samples[0])["y"].astype(np.float64)
    records = apply(module, f"quantize{{weights={weights}}}", samples=samples, check="off")
    assert records[-1].stats["linear-layers"] == 2
    assert not any(name in module.weights for name in ("up", "down"))
    gelu = next(node for node in module.graph if node.op.name == "gelu")
    assert gelu.output.dtype is DType(dtype)
    assert module.graph.outputs[0].dtype is DType(dtype)
    after = evaluate(module, samples[0])["y"].astype(np.float64)
    tolerance = 0.02 if weights == "int8" else 0.15
    assert np.sqrt(np.square(after - before).mean()) < tolerance * np.sqrt(np.square(before).mean())


def test_tables_of_half_precision_are_read_in_it() -> None:
    module = spelled(
        "%e = gather(%table, %ids) {axis = 0}\n%y = matmul(%e, %w)",
        inputs="%ids : i64[B, S]",
        weights={"table": "f16[50, 16]", "w": "f16[16, 8]"},
    )
    samples = [{"ids": np.arange(10).reshape(2, 5)}]
    before = evaluate(module, samples[0])["y"]
    records = apply(module, "quantize", samples=samples, check="off")
    assert records[-1].stats["tables"] == 1
    after = evaluate(module, samples[0])["y"]
    assert after.dtype == np.float16
    np.testing.assert_allclose(after, before, atol=0.05 * np.abs(before).max())


def test_transposed_weights_need_no_canonicalize_before() -> None:
    module = spelled(
        "%t = transpose(%w) {perm = [1, 0]}\n%y = matmul(%x, %t)", weights={"w": "f32[64, 16]"}
    )
    module.weights.trainable = True
    record = apply(module, "quantize", samples=_samples(), check="off")[-1]
    assert record.changed
    assert record.stats["linear-layers"] == 1


def test_nothing_to_quantize_is_an_error_that_says_why() -> None:
    module = spelled("%y = matmul(%w, %x)", shape="B, 16, 4", weights={"w": "f32[8, 16]"})
    with pytest.raises(TargetError, match=r"(?s)nothing to quantize.*`w`: .*left factor") as caught:
        apply(module, "quantize", check="off")
    assert caught.value.exit_code == 4


def test_products_in_bodies_are_listed() -> None:
    module = parse_module(
        "symbol B\nweight @w : f32[16, 8] role=param = random(1)\n"
        "graph(%c : bool[], %x : f32[B, 16]) {\n"
        "%y = if(%c, %x) {num_captures = 1} body(%a : f32[B, 16]) {\n"
        "%w = weight @w\n%p = matmul(%a, %w)\nreturn %p\n} body(%b : f32[B, 16]) {\n"
        "%v = weight @w\n%q = matmul(%b, %v)\n%n = neg(%q)\nreturn %n\n}\nreturn %y\n}\n"
    )
    with pytest.raises(TargetError, match=r"(?s)`p`: `matmul` within a body of `if`.*`q`: "):
        apply(module, "quantize", check="off")


def test_a_weight_that_is_transposed_at_every_use_is_stored_once() -> None:
    layers = "\n".join(
        f"%t{i} = transpose(%w) {{perm = [1, 0]}}\n%a{i} = matmul(%{'x' if i == 0 else f'h{i}'}, "
        f"%t{i})\n%h{i + 1} = tanh(%a{i})"
        for i in range(3)
    )
    module = spelled(f"{layers}\n%y = relu(%h3)", weights={"w": "f32[16, 16]"})
    module.weights.trainable = True
    apply(module, "canonicalize", check="off")
    assert len(module.weights) == 1
    apply(module, "quantize{weights=int4},legalize{target=ort-cpu}", check="off")
    assert sum(name.endswith(".packed") for name in module.weights) == 1


def test_layers_of_half_precision_may_read_each_other() -> None:
    text = "%h = matmul(%x, %a)\n%g = matmul(%h, %b)\n%y = matmul(%g, %a)"
    module = spelled(text, weights={"a": "f16[16, 16]", "b": "f16[16, 16]"}, dtype="f16")
    sample = {"x": np.random.default_rng(0).standard_normal((2, 5, 16)).astype(np.float16)}
    before = evaluate(module, sample)["y"].astype(np.float32)
    apply(module, "quantize{weights=int8}", check="off")
    after = evaluate(module, sample)["y"].astype(np.float32)
    # steps of 1/127 of the largest of 16 numbers, three layers in a row
    assert np.linalg.norm(after - before) < 0.05 * np.linalg.norm(before)
