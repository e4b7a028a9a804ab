"""ONNX Runtime's kernels of linear attention and causal convolution, prefill and decode."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

import regraft
from regraft.backends.onnx import to_proto
from regraft.ir.dims import Dim
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.ir.ops.attention import attention
from regraft.ir.ops.causal_conv import causal_conv
from regraft.ir.ops.linear_attention import linear_attention
from regraft.ir.opspec import OpSpec
from regraft.ir.types import TensorType, dtype_of
from tests.conformance.cases import run_ort

Array = np.ndarray[Any, Any]

B, H, G, T, D, E = 2, 4, 2, 11, 8, 8
RNG = np.random.default_rng(1)


def _floats(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


Q, K, V = _floats(B, H, T, D), _floats(B, H // G, T, D) / 3, _floats(B, H // G, T, E)
GATES = {
    "none": None,
    "per head": -np.abs(_floats(1, H // G, 1, 1)),
    "per position": -np.abs(_floats(B, H // G, T, 1)),
    "per channel": -np.abs(_floats(B, H // G, T, D)),
}
BETA = RNG.uniform(0, 1, (B, 1, T, 1)).astype(np.float32)


def _module(
    spec: OpSpec, operands: list[Array | None], lengths: int, **attrs: Any
) -> tuple[Module, dict[str, Array]]:
    """Returns the operator as a module; axes of size `lengths` are the symbol T."""
    module = Module(Graph())
    graph, values, feeds = module.graph, [], {}
    for i, array in enumerate(operands):
        if array is None:
            values.append(None)
            continue
        symbol = Dim.of(graph.scope.symbol("T"))
        shape = tuple(symbol if size == lengths else size for size in array.shape)
        values.append(graph.add_input(f"x{i}", TensorType(dtype_of(array), shape)))
        feeds[f"x{i}"] = array
    for i, value in enumerate(graph.create(spec, values, attrs).outputs):
        graph.add_output(f"y{i}", value)
    return module, feeds


def _lowered(module: Module) -> set[str]:
    regraft.apply(module, "canonicalize,legalize{target=ort-cpu}", check="off")
    return {node.op_type for node in to_proto(module, profile="ort-cpu").graph.node}


@pytest.mark.parametrize("beta", [None, BETA], ids=["add", "delta"])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("normalizer", ["none", "sum"])
def test_the_kernel_is_taken_and_equal(gate: str, beta: Array | None, normalizer: str) -> None:
    gates = GATES[gate]
    names = ("" if gates is None else "gated", "" if beta is None else "delta")
    attrs: dict[str, Any] = {
        "rule": "_".join(filter(None, names)) or "linear", "scale": 0.4, "kv_groups": G,
        "normalizer": normalizer,
    }  # fmt: skip
    if normalizer == "sum":
        attrs["feature_map"] = "softmax"
    module, feeds = _module(linear_attention, [Q, K, V, None, gates, beta], T, **attrs)
    expected = list(evaluate(module, feeds).values())
    assert "LinearAttention" in _lowered(module)
    found = run_ort(to_proto(module, profile="ort-cpu"), list(feeds.values()))
    for own, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, want, rtol=0, atol=1e-5 * max(1, np.abs(want).max()))
    # the file is read back as what it was
    loaded = regraft.load(to_proto(module, profile="ort-cpu"))
    assert linear_attention in {node.op for node in loaded.graph}


@pytest.mark.parametrize("length", [1, 3, T])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("feature_map", ["relu", "hedgehog"])
def test_the_sum_beside_the_kernel_goes_on_from_a_state(
    feature_map: str, given: bool, length: int
) -> None:
    features = 2 * D if feature_map == "hedgehog" else D
    state = np.abs(_floats(B, H // G, features, E + 1)) if given else None
    attrs = {"rule": "linear", "scale": 0.4, "kv_groups": G, "normalizer": "sum",
             "feature_map": feature_map, "epsilon": 1e-3}  # fmt: skip
    operands = [x[:, :, :length] for x in (Q, K, V)]
    module, feeds = _module(linear_attention, [*operands, state], length, **attrs)
    expected = list(evaluate(module, feeds).values())
    assert {"LinearAttention", "CumSum"} <= _lowered(module)
    found = run_ort(to_proto(module, profile="ort-cpu"), list(feeds.values()))
    for own, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, want, rtol=0, atol=1e-5 * max(1, np.abs(want).max()))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("beta", [None, BETA], ids=["add", "delta"])
def test_opset_27_has_the_recurrence_as_an_operator(beta: Array | None, gate: str) -> None:
    gates = GATES[gate]
    names = ("" if gates is None else "gated", "" if beta is None else "delta")
    attrs: dict[str, Any] = {
        "rule": "_".join(filter(None, names)) or "linear", "scale": 0.4, "kv_groups": G,
        "normalizer": "sum", "feature_map": "softmax",
    }  # fmt: skip
    if gates is not None and gates.shape[0] == 1:  # the reference broadcasts no decay
        gates = np.broadcast_to(gates, (B, H // G, T, 1)).copy()
    module, feeds = _module(linear_attention, [Q, K, V, None, gates, beta], T, **attrs)
    expected = list(evaluate(module, feeds).values())
    regraft.apply(module, "canonicalize,legalize{target=onnx,opset=27}", check="off")
    proto = to_proto(module, profile="onnx", opset=27)
    assert [(node.domain, node.op_type) for node in proto.graph.node].count(
        ("", "LinearAttention")
    ) == 1
    assert {each.version for each in proto.opset_import} == {27}
    onnx.checker.check_model(proto, full_check=True)
    found = ReferenceEvaluator(proto).run(None, feeds)
    for own, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, want, rtol=0, atol=1e-5 * max(1, np.abs(want).max()))


def test_opset_27_has_the_causal_convolution_as_an_operator() -> None:
    operands = [_floats(B, 5, T), _floats(5, 1, 4), _floats(5), _floats(B, 5, 3)]
    module, feeds = _module(causal_conv, operands, T, activation="silu")
    expected = list(evaluate(module, feeds).values())
    proto = to_proto(module, profile="onnx", opset=27)
    assert {node.op_type for node in proto.graph.node} == {"CausalConvWithState"}
    found = ReferenceEvaluator(proto).run(None, feeds)
    for own, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, want, rtol=0, atol=1e-5)
    assert {"Conv", "CausalConvWithState"} & {
        node.op_type for node in to_proto(module, profile="onnx").graph.node
    } == {"Conv"}


@pytest.mark.parametrize("columns", [32, 40])
def test_the_kernel_is_taken_where_measured_costs_say_so(columns: int) -> None:
    operands = [_floats(1, 4, 512, 32), _floats(1, 4, 512, 32), _floats(1, 4, 512, columns)]
    module, _ = _module(linear_attention, operands, -1, rule="linear", scale=0.2)
    assert ("LinearAttention" in _lowered(module)) is (columns == 32)


@pytest.mark.parametrize("spec", [linear_attention, causal_conv], ids=lambda spec: spec.name)
def test_states_that_nothing_reads_may_be_left(spec: OpSpec) -> None:
    if spec is linear_attention:
        module, feeds = _module(spec, [Q, K, V], T, rule="linear", scale=0.4, kv_groups=G)
    else:
        module, feeds = _module(spec, [_floats(B, 5, T), _floats(5, 1, 4)], T)
    module.graph.set_outputs([("y0", module.graph.outputs[0])])
    expected = evaluate(module, feeds)["y0"]
    _lowered(module)
    (found,) = run_ort(to_proto(module, profile="ort-cpu"), list(feeds.values()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", ["ort-cpu", "onnx"])
def test_prefill_and_steps_with_states_are_one_function(target: str) -> None:
    attrs = {"rule": "gated_delta", "scale": 0.4, "kv_groups": G, "normalizer": "sum",
             "feature_map": "hedgehog"}  # fmt: skip
    gates = GATES["per position"]
    states = np.zeros((B, H // G, 2 * D, E + 1), np.float32)

    def session(operands: list[Array | None], lengths: int) -> tuple[Any, dict[str, Array]]:
        module, feeds = _module(linear_attention, operands, lengths, **attrs)
        regraft.apply(module, f"canonicalize,legalize{{target={target}}}", check="off")
        return to_proto(module, profile=target), feeds

    prefill, feeds = session([Q, K, V, states, gates, BETA], T)
    whole, last = run_ort(prefill, list(feeds.values()))
    state, rows = states, []
    for t in range(T):
        own = [x[:, :, t : t + 1] for x in (Q, K, V, gates, BETA)]
        step, feeds = session([*own[:3], state, *own[3:]], -1)
        row, state = run_ort(step, list(feeds.values()))
        assert state.nbytes == states.nbytes
        rows.append(row)
    bound = 1e-5 * max(1, float(np.abs(whole).max()))
    np.testing.assert_allclose(np.concatenate(rows, 2), whole, rtol=0, atol=bound)
    np.testing.assert_allclose(state, last, rtol=0, atol=1e-5)


@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("activation", ["none", "silu"])
def test_a_causal_convolution_takes_its_kernel(activation: str, past: bool) -> None:
    operands = [_floats(B, 5, T), _floats(5, 1, 4), _floats(5), _floats(B, 5, 3) if past else None]
    module, feeds = _module(causal_conv, operands, T, activation=activation)
    expected = list(evaluate(module, feeds).values())
    assert _lowered(module) == {"CausalConvWithState"}
    found = run_ort(to_proto(module, profile="ort-cpu"), list(feeds.values()))
    for own, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [40, 37])
@pytest.mark.parametrize("normalizer", ["softmax", "stablemax"])
def test_a_narrow_window_is_computed_in_blocks(length: int, normalizer: str) -> None:
    operands = [_floats(B, H, length, D), *(_floats(B, H // G, length, D) for _ in "kv")]
    attrs = {"scale": 0.4, "kv_groups": G, "causal_offset": 0, "window": (5, 0)}
    module, feeds = _module(attention, operands, -1, normalizer=normalizer, **attrs)
    (expected,) = evaluate(module, feeds).values()
    regraft.apply(module, "canonicalize,legalize{target=ort-cpu}", check="off")
    proto = to_proto(module, profile="ort-cpu")
    inferred = onnx.shape_inference.infer_shapes(proto)
    shapes = [
        [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in inferred.graph.value_info
    ]
    assert shapes
    assert all(shape.count(length) < 2 for shape in shapes)  # no scores of all pairs
    (found,) = run_ort(proto, list(feeds.values()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [1, 7, 40, 81])
def test_a_narrow_window_is_exact_at_lengths_that_only_run_time_knows(length: int) -> None:
    operands = [_floats(B, H, length, D), *(_floats(B, H // G, length, D) for _ in "kv")]
    symbol = Dim.of((module := Module(Graph())).graph.scope.symbol("T", lo=1))
    values = [
        module.graph.add_input(
            f"x{i}", TensorType(dtype_of(x), tuple(symbol if s == length else s for s in x.shape))
        )
        for i, x in enumerate(operands)
    ]
    made = module.graph.create(
        attention, [*values], {"scale": 0.4, "kv_groups": G, "causal_offset": 0, "window": (9, 0)}
    )
    module.graph.add_output("y", made.output)
    feeds = {f"x{i}": x for i, x in enumerate(operands)}
    (expected,) = evaluate(module, feeds).values()
    regraft.apply(module, "canonicalize,legalize{target=ort-cpu}", check="off")
    assert any("legalize-window" in str(place) for node in module.graph for place in node.loc)
    (found,) = run_ort(to_proto(module, profile="ort-cpu"), operands)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
