"""Random operators: seeded, distributed as declared, saved with shapes of run time."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from regraft.backends.onnx import to_proto
from regraft.frontends.onnx import load_onnx
from regraft.ir.errors import RegraftError
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from tests.conformance.cases import run_ort

NUM = 20_000
# five standard errors of a mean of NUM samples of unit variance
FIVE_SIGMA = 5 / NUM**0.5


def proto(op_type: str, x_shape: list[Any] | None, **attrs: Any) -> onnx.ModelProto:
    inputs = [] if x_shape is None else [helper.make_tensor_value_info("x", 1, x_shape)]
    node = helper.make_node(op_type, [item.name for item in inputs], ["y"], **attrs)
    graph = helper.make_graph([node], "g", inputs, [onnx.ValueInfoProto(name="y")])
    opsets = [helper.make_opsetid("", 15)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def draw(module: Module, inputs: dict[str, Any], seed: int = 0) -> np.ndarray[Any, Any]:
    result: np.ndarray[Any, Any] = evaluate(module, inputs, seed=seed)["y"]
    return result


def test_normal_and_uniform_have_the_declared_moments() -> None:
    normal = load_onnx(proto("RandomNormal", None, shape=[NUM], mean=3.0, scale=2.0, seed=1.0))
    x = draw(normal, {})
    assert x.dtype == np.float32
    assert abs(x.mean() - 3) < 2 * FIVE_SIGMA
    assert abs(x.std() - 2) < 2 * FIVE_SIGMA
    uniform = load_onnx(proto("RandomUniform", None, shape=[NUM], low=-1.0, high=3.0, dtype=11))
    y = draw(uniform, {})
    assert y.dtype == np.float64
    assert y.min() >= -1
    assert y.max() < 3
    assert abs(y.mean() - 1) < 4 / 12**0.5 * FIVE_SIGMA


def test_the_seed_of_the_run_decides() -> None:
    module = load_onnx(proto("RandomNormal", None, shape=[8]))
    assert np.array_equal(draw(module, {}, 1), draw(module, {}, 1))
    assert not np.array_equal(draw(module, {}, 1), draw(module, {}, 2))


@pytest.mark.parametrize("op_type", ["RandomNormalLike", "RandomUniformLike"])
def test_like_takes_a_shape_of_run_time(op_type: str) -> None:
    module = load_onnx(proto(op_type, ["N", 3]))
    x = np.zeros((5, 3), np.float32)
    assert draw(module, {"x": x}).shape == (5, 3)
    (result,) = run_ort(to_proto(module), [x])
    assert result.shape == (5, 3)
    assert result.dtype == np.float32


def test_bernoulli_draws_with_the_given_probabilities() -> None:
    module = load_onnx(proto("Bernoulli", [2, NUM], dtype=TensorProto.INT64))
    p = np.array([[0.25], [1.0]], np.float32).repeat(NUM, 1)
    x = draw(module, {"x": p})
    assert x.dtype == np.int64
    assert abs(x[0].mean() - 0.25) < (0.25 * 0.75) ** 0.5 * FIVE_SIGMA
    assert x[1].all()


def test_multinomial_draws_from_the_softmax() -> None:
    module = load_onnx(proto("Multinomial", [1, 3], sample_size=NUM, dtype=TensorProto.INT64))
    p = np.array([0.5, 0.3, 0.2])
    x = draw(module, {"x": np.log(7 * p)[None].astype(np.float32)})
    assert x.shape == (1, NUM)
    shares = np.bincount(x[0], minlength=3) / NUM
    assert np.all(np.abs(shares - p) < 0.5 * FIVE_SIGMA)


def test_multinomial_of_another_rank_is_refused() -> None:
    with pytest.raises(
        RegraftError, match=r"expected log probabilities of shape \[batch, classes\]"
    ):
        load_onnx(proto("Multinomial", [1, 3, 2]))
