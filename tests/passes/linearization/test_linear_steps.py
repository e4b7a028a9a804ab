"""`canonicalize-recurrence`: factors and gains that are computed at every step, and ONNX `Scan`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper as oh

import regraft
from regraft.auditing import audit_module
from regraft.backends.onnx import to_proto
from regraft.backends.onnx.runtime import OrtRunner
from regraft.ir.builder import Builder
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Graph, Value
from regraft.ir.module import Module
from regraft.ir.ops import (
    activation,
    arithmetic,
    functions,
    gathering,
    linalg,
    reduce,
    reshaping,
    slicing,
)
from regraft.ir.ops.linear_attention import linear_attention
from regraft.ir.types import DType, TensorType
from regraft.passes.linearization.attention_weights import weights_of_mixer

Array = np.ndarray[Any, Any]
B, H, D, E, T = 2, 3, 4, 5, 6
F32 = onnx.TensorProto.FLOAT


class _Steps:
    """Writes out steps on the positions of inputs."""

    def __init__(self, **inputs: tuple[int, ...]) -> None:
        self.module = Module(Graph())
        self.b = Builder(self.module.graph)
        self.inputs = {
            name: self.module.graph.add_input(name, TensorType(DType.F32, shape))
            for name, shape in inputs.items()
        }
        rng = np.random.default_rng(6)
        self.feeds = {
            name: rng.standard_normal(shape).astype(np.float32) for name, shape in inputs.items()
        }

    def at(self, name: str, t: int) -> Value:
        """Returns position t, along axis 1."""
        return self.b.op(gathering.gather, self.inputs[name], self.b.constant(np.int64(t)), axis=1)

    def rewritten(self, rows: list[Value]) -> Any:
        """Makes rows the output, rewrites, and asserts that nothing else changed."""
        lined = [self.b.op(reshaping.unsqueeze, row, axes=(1,)) for row in rows]
        self.module.graph.add_output("y", self.b.op(slicing.concat, *lined, axis=1))
        before = evaluate(self.module, self.feeds, oracle=True)
        (record,) = regraft.apply(self.module, "canonicalize-recurrence", check="off")
        after = evaluate(self.module, self.feeds, oracle=True)
        for name, array in before.items():
            np.testing.assert_allclose(after[name], array, atol=1e-6)
        return record


def _operators(module: Module) -> list[str]:
    return [node.op.name for node in module.graph]


@pytest.mark.parametrize("kind", ["z h + (1 - z) u", "(1 - z) h + z u", "exp(-z) h + u", "h + u"])
@pytest.mark.parametrize("has_start", [False, True], ids=["from zero", "from a state"])
def test_gated_networks(kind: str, has_start: bool) -> None:
    w = _Steps(z=(B, T, D), u=(B, T, D), h=(B, D))
    b, rows = w.b, []
    one = b.constant(np.float32(1))
    h = w.inputs["h"] if has_start else b.constant(np.zeros((B, D), np.float32))
    for t in range(T):
        z, u = w.at("z", t), w.at("u", t)
        gate = b.op(activation.sigmoid, z)
        rest = b.op(arithmetic.sub, one, gate)
        factor: Value | None
        match kind:
            case "z h + (1 - z) u":
                factor, gain = gate, b.op(arithmetic.mul, rest, u)
            case "(1 - z) h + z u":
                factor, gain = rest, b.op(arithmetic.mul, gate, u)
            case "exp(-z) h + u":
                factor, gain = b.op(functions.exp, b.op(arithmetic.neg, z)), u
            case _:
                factor, gain = None, u
        scaled = h if factor is None else b.op(arithmetic.mul, factor, h)
        h = b.op(arithmetic.add, scaled, gain)
        rows.append(h)
    record = w.rewritten(rows)
    assert (record.stats["recurrences"], record.stats["steps"]) == (1, T)
    assert _operators(w.module).count("linear_attention") == 1


@pytest.mark.parametrize("read", ["matmul", "sum"])
@pytest.mark.parametrize("decay", ["none", "constant", "per head", "per key"])
def test_matrices_of_states_are_read_by_the_operator(decay: str, read: str) -> None:
    """Linear attention, RetNet, gated linear attention: keys and values stay what they are."""
    w = _Steps(q=(B, T, H, D), k=(B, T, H, D), v=(B, T, H, E), g=(B, T, H, D), S=(B, H, D, E))
    b, rows, S = w.b, [], w.inputs["S"]
    fixed = b.constant(np.array([0.5, 0.9, 1.0], np.float32).reshape(1, H, 1, 1))
    for t in range(T):
        key = b.op(reshaping.unsqueeze, w.at("k", t), axes=(3,))
        gain = b.op(arithmetic.mul, key, b.op(reshaping.unsqueeze, w.at("v", t), axes=(2,)))
        gate = b.op(activation.sigmoid, w.at("g", t))
        match decay:
            case "none":
                scaled = S
            case "constant":
                scaled = b.op(arithmetic.mul, fixed, S)
            case "per head":
                head = b.op(slicing.slice_, gate, starts=(0,), ends=(1,), axes=(2,), steps=(1,))
                lined = b.op(reshaping.unsqueeze, head, axes=(3,))
                scaled = b.op(arithmetic.mul, lined, S)
            case _:
                scaled = b.op(arithmetic.mul, b.op(reshaping.unsqueeze, gate, axes=(3,)), S)
        S = b.op(arithmetic.add, scaled, gain)
        q = w.at("q", t)
        if read == "matmul":
            row = b.op(linalg.matmul, b.op(reshaping.unsqueeze, q, axes=(2,)), S)
            rows.append(b.op(reshaping.squeeze, row, axes=(2,)))
            continue
        product = b.op(arithmetic.mul, b.op(reshaping.unsqueeze, q, axes=(3,)), S)
        rows.append(b.op(reduce.reduce_sum, product, axes=(2,), keepdims=False))
    w.module.graph.add_output("last", S)
    record = w.rewritten(rows)
    assert record.stats["recurrences"] == 1
    (node,) = [each for each in w.module.graph if each.op is linear_attention]
    assert [value and value.shape for value in node.inputs[:3]] == [
        (B, H, T, D), (B, H, T, D), (B, H, T, E),
    ]  # fmt: skip


def test_a_network_that_looks_at_its_state_says_so() -> None:
    """A gate of the state before makes a GRU, and no linear recurrence."""
    w = _Steps(u=(B, T, D), h=(B, D))
    b, h, rows = w.b, w.inputs["h"], []
    for t in range(T):
        gate = b.op(activation.sigmoid, h)
        h = b.op(arithmetic.add, b.op(arithmetic.mul, gate, h), w.at("u", t))
        rows.append(h)
    record = w.rewritten(rows)
    assert record.stats["recurrences"] == 0
    assert "not linear in it" in record.skipped[0].reason


def _scanned(
    body: list[onnx.NodeProto], inputs: Mapping[str, tuple[int, ...]], state: tuple[int, ...],
    row: tuple[int, ...], constants: Mapping[str, Array] | None = None,
) -> onnx.ModelProto:  # fmt: skip
    """Returns a model of one scan along axis 0; the body makes `after` and `row` of `before`."""

    def info(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
        return oh.make_tensor_value_info(name, F32, shape)

    graph = oh.make_graph(
        body, "body",
        [info("before", state), *(info(f"{name}_t", shape) for name, shape in inputs.items())],
        [info("after", state), info("row", row)],
        [onnx.numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )  # fmt: skip
    node = oh.make_node(
        "Scan", ["start", *inputs], ["last", "rows"], body=graph, num_scan_inputs=len(inputs)
    )
    whole = {name: (T, *shape) for name, shape in inputs.items()}
    outer = oh.make_graph(
        [node], "scan", [info("start", state), *(info(n, s) for n, s in whole.items())],
        [info("last", state), info("rows", (T, *row))],
    )  # fmt: skip
    return oh.make_model(outer, opset_imports=[oh.make_opsetid("", 18)], ir_version=9)


def _nodes(*rows: tuple[Any, ...]) -> list[onnx.NodeProto]:
    return [oh.make_node(op, inputs, [output], **attrs) for op, inputs, output, attrs in rows]


def _selective() -> onnx.ModelProto:
    """S6 with the state [B, D, E]: factors exp(d A), read by c."""
    body = _nodes(
        ("Mul", ["d_t", "A"], "dA", {}), ("Exp", ["dA"], "f", {}),
        ("Mul", ["d_t", "x_t"], "gain", {}), ("Mul", ["f", "before"], "scaled", {}),
        ("Add", ["scaled", "gain"], "after", {}), ("MatMul", ["after", "c_t"], "row", {}),
    )  # fmt: skip
    inputs = {"d": (B, D, 1), "x": (B, 1, E), "c": (B, E, 1)}
    A = -np.arange(1, D * E + 1, dtype=np.float32).reshape(D, E) / 8
    return _scanned(body, inputs, (B, D, E), (B, D, 1), {"A": A})


def _gated() -> onnx.ModelProto:
    """A gated network whose rows read the state before as well."""
    body = _nodes(
        ("Sigmoid", ["z_t"], "f", {}), ("Sub", ["one", "f"], "rest", {}),
        ("Mul", ["rest", "u_t"], "gain", {}), ("Mul", ["before", "f"], "scaled", {}),
        ("Add", ["gain", "scaled"], "after", {}), ("Sub", ["after", "before"], "row", {}),
    )  # fmt: skip
    return _scanned(
        body, {"z": (B, D), "u": (B, D)}, (B, D), (B, D), {"one": np.ones(1, np.float32)}
    )


def _linear() -> onnx.ModelProto:
    """Linear attention without a decay, read by a product."""
    body = _nodes(
        ("Mul", ["k_t", "v_t"], "u", {}),
        ("Add", ["before", "u"], "after", {}),
        ("MatMul", ["q_t", "after"], "row", {}),
    )
    inputs = {"q": (B, H, 1, D), "k": (B, H, D, 1), "v": (B, H, 1, E)}
    return _scanned(body, inputs, (B, H, D, E), (B, H, 1, E))


def _loop(*, is_list: bool = False) -> onnx.ModelProto:
    """A gated network whose loop gathers positions along axis 1, those from a longer tensor too."""
    at = "place" if is_list else "i"
    gathered = [(name, f"{name}_one" if is_list else f"{name}_t") for name in "zu"]
    body = _nodes(
        *([("Unsqueeze", ["i", "zero"], "place", {})] if is_list else []),
        *(("Gather", [name, at], row, {"axis": 1}) for name, row in gathered),
        *(("Squeeze", [row, "axes"], f"{name}_t", {}) for name, row in gathered if is_list),
        ("Sigmoid", ["z_t"], "f", {}), ("Mul", ["f", "before"], "scaled", {}),
        ("Add", ["scaled", "u_t"], "after", {}), ("Sub", ["after", "before"], "row", {}),
        ("Identity", ["go"], "again", {}),
    )  # fmt: skip

    def info(name: str, *shape: int) -> onnx.ValueInfoProto:
        return oh.make_tensor_value_info(name, F32, shape)

    numbers = {"zero": np.array([0]), "axes": np.array([1])}
    graph = oh.make_graph(
        body, "body",
        [oh.make_tensor_value_info("i", onnx.TensorProto.INT64, ()),
         oh.make_tensor_value_info("go", onnx.TensorProto.BOOL, ()), info("before", B, D)],
        [oh.make_tensor_value_info("again", onnx.TensorProto.BOOL, ()), info("after", B, D),
         info("row", B, D)],
        [onnx.numpy_helper.from_array(array, name) for name, array in numbers.items()],
    )  # fmt: skip
    node = oh.make_node("Loop", ["trips", "", "start"], ["last", "rows"], body=graph)
    outer = oh.make_graph(
        [node], "loop", [info("start", B, D), info("z", B, T, D), info("u", B, T + 2, D)],
        [info("last", B, D), info("rows", T, B, D)],
        [onnx.numpy_helper.from_array(np.array(T), "trips")],
    )  # fmt: skip
    return oh.make_model(outer, opset_imports=[oh.make_opsetid("", 18)], ir_version=9)


def _loop_of_lists() -> onnx.ModelProto:
    return _loop(is_list=True)


@pytest.mark.parametrize("model", [_selective, _gated, _linear, _loop, _loop_of_lists])
def test_a_scan_or_loop_is_the_operator(model: Callable[[], onnx.ModelProto]) -> None:
    source = model()
    module = regraft.load(source)
    rng = np.random.default_rng(7)
    feeds = {
        str(value.name): np.abs(
            rng.standard_normal([int(str(d)) for d in value.shape or ()])
        ).astype(np.float32)
        for value in module.graph.inputs
    }
    passes = "canonicalize,canonicalize-recurrence"
    record = regraft.apply(module, passes, check="off")[-1]
    assert record.stats["recurrences"] == 1, record.skipped
    names = _operators(module)
    assert "linear_attention" in names
    assert not {"scan", "loop"} & set(names)
    eps = float(np.finfo(np.float32).eps)
    wanted, found = OrtRunner(source)(feeds), OrtRunner(to_proto(module))(feeds)
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=64 * eps, atol=64 * eps)


def test_a_scan_that_is_not_linear_stays() -> None:
    body = _nodes(
        ("Tanh", ["before"], "bent", {}), ("Mul", ["bent", "before"], "scaled", {}),
        ("Add", ["scaled", "u_t"], "after", {}), ("Identity", ["after"], "row", {}),
    )  # fmt: skip
    module = regraft.load(_scanned(body, {"u": (B, D)}, (B, D), (B, D)))
    (record,) = regraft.apply(module, "canonicalize-recurrence", check="off")
    assert record.stats["recurrences"] == 0
    assert "scan" in _operators(module)
    assert "depend on the state" in record.skipped[0].reason


def test_the_audit_sees_recurrences_of_both_models() -> None:
    """A scan has weights over its steps, a state, and no cache: beside itself, nothing is lost."""
    module = regraft.load(_selective())
    sizes = {str(x.name): [int(str(d)) for d in x.shape or ()] for x in module.graph.inputs}
    rng = np.random.default_rng(8)
    feeds = {
        name: np.abs(rng.standard_normal(shape)).astype(np.float32) for name, shape in sizes.items()
    }
    feeds["start"] *= 0  # weights are of steps: what was before them has none
    report = audit_module(module, module, [feeds])
    (layer,) = report["layers"]
    assert layer["kind"] == "linear"
    assert max(layer["kl"]) == pytest.approx(0, abs=1e-6)
    assert report["verdict"] == "linear"
    assert report["state_bytes"] > 0
    assert (report["kv_bytes_per_token"], report["caches"]) == (0, 0)


@pytest.mark.parametrize("size", [1, D], ids=["a decay per head", "per key"])
def test_weights_with_a_decay_are_those_that_the_operator_computes(size: int) -> None:
    w = _Steps(q=(B, H, T, D), k=(B, H, T, D), v=(B, H, T, E), g=(B, H, T, size))
    values = [w.inputs[name] for name in "qkv"]
    decay = w.b.op(arithmetic.neg, w.b.op(activation.softplus, w.inputs["g"]))
    out = w.b.op(linear_attention, *values, None, decay, rule="gated", scale=1.0)
    w.module.graph.add_output("y", out)
    made = out.producer
    assert made is not None
    feeds = {name: np.abs(array) for name, array in w.feeds.items()}
    given = {**feeds, "decay": -np.log1p(np.exp(feeds["g"]))}
    weights = weights_of_mixer(made, given)
    found = evaluate(w.module, feeds, oracle=True)["y"]
    sums = evaluate(w.module, {**feeds, "v": np.ones_like(feeds["v"])}, oracle=True)["y"]
    np.testing.assert_allclose(weights @ feeds["v"], found / sums, rtol=1e-5)
