"""Matrix products, reductions, softmax and attention of every opset that changed a meaning."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from regraft.backends.onnx import to_proto
from regraft.frontends.onnx import load_onnx
from regraft.ir.dims import Dim
from regraft.ir.ops import attention, reshaping, slicing
from tests.single_node import check_agreement, single_node

RNG = np.random.default_rng(0)
EPS = float(np.finfo(np.float32).eps)
RTOL = 64 * EPS  # sums of at most some 64 terms, ordered differently

REDUCTIONS = (
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare",
)  # fmt: skip


def _floats(*shape: int) -> Any:
    return RNG.uniform(0.5, 2, shape).astype(np.float32)


@pytest.mark.parametrize("opset", [7, 9, 11, 13])
@pytest.mark.parametrize("bias", [None, (), (5,), (3, 1)])
def test_gemm(opset: int, bias: tuple[int, ...] | None) -> None:
    if bias is None and opset < 11:
        bias = (5,)  # the bias became optional
    for trans_a, trans_b in product((0, 1), repeat=2):
        operands = [
            _floats(*((4, 3) if trans_a else (3, 4))),
            _floats(*((5, 4) if trans_b else (4, 5))),
            None if bias is None else _floats(*bias),
        ]
        while operands[-1] is None:
            operands.pop()
        proto = single_node(
            "Gemm", opset, operands, alpha=0.5, beta=0.25, transA=trans_a, transB=trans_b
        )
        check_agreement(proto, operands, rtol=RTOL)


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1])
@pytest.mark.parametrize("opset", [7, 11, 13])
def test_softmax(opset: int, axis: int | None, op_type: str, symbolic: bool) -> None:
    if axis == -1 and opset < 11:
        axis = 2
    x = RNG.standard_normal((2, 3, 4)).astype(np.float32)
    attrs = {} if axis is None else {"axis": axis}
    proto = single_node(op_type, opset, [x], symbolic=symbolic, **attrs)
    module = check_agreement(proto, [x], rtol=RTOL)
    flat = any(node.op is reshaping.reshape for node in module.graph)
    # before 13 the axes from `axis` (default 1) on are one
    assert flat == (opset < 13 and axis not in (2, -1))


def test_softmax_of_flat_tail_needs_no_reshape() -> None:
    x = _floats(2, 5, 1, 1)
    module = check_agreement(single_node("Softmax", 11, [x]), [x], rtol=RTOL)
    assert [node.op.name for node in module.graph] == ["softmax"]


def test_softmax_of_unknown_rank_flattens_at_run_time() -> None:
    x = RNG.standard_normal((2, 3, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "s"], ["r"]), helper.make_node("Softmax", ["r"], ["y"])],
        "g",
        [
            helper.make_tensor_value_info("x", 1, [24]),
            helper.make_tensor_value_info("s", 7, ["n"]),
        ],
        [onnx.ValueInfoProto(name="y")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7)
    check_agreement(proto, [x.reshape(-1), np.array([2, 3, 4])], rtol=RTOL)


@pytest.mark.parametrize("op_type", REDUCTIONS)
@pytest.mark.parametrize("opset", [7, 11, 13, 18])
def test_reductions(opset: int, op_type: str) -> None:
    as_operand = opset >= (13 if op_type == "ReduceSum" else 18)
    x = _floats(2, 3, 4)
    for axes, keepdims in product((None, (1,), (0, 2), (-1,)), (0, 1)):
        if axes == (-1,) and opset < 11:
            continue
        operands, attrs = [x], {"keepdims": keepdims}
        if axes is not None and as_operand:
            operands.append(np.array(axes))
        elif axes is not None:
            attrs["axes"] = axes
        proto = single_node(op_type, opset, operands, constant=(1,), **attrs)
        check_agreement(proto, operands, rtol=RTOL, constant=(1,))


@pytest.mark.parametrize("op_type", REDUCTIONS)
@pytest.mark.parametrize("noop", [0, 1])
def test_reductions_over_no_axes(op_type: str, noop: int) -> None:
    x, empty = _floats(2, 3), np.array([], np.int64)
    for operands in ([x], [x, empty]):
        proto = single_node(op_type, 18, operands, constant=(1,), noop_with_empty_axes=noop)
        if op_type == "ReduceLogSumExp" and noop:
            # log(exp(x)) is x
            check_agreement(proto, operands, rtol=RTOL, constant=(1,), expected=[x])
        else:
            check_agreement(proto, operands, rtol=RTOL, constant=(1,))


@pytest.mark.parametrize("axes", [(0,), (0, -1), ()])
def test_reductions_over_axes_of_run_time(axes: tuple[int, ...]) -> None:
    operands = [_floats(2, 3, 4), np.array(axes, np.int64)]
    for keepdims, noop in product((0, 1), repeat=2):
        attrs = {"keepdims": keepdims, "noop_with_empty_axes": noop}
        check_agreement(single_node("ReduceMax", 18, operands, **attrs), operands, rtol=RTOL)
        check_agreement(single_node("ReduceSum", 13, operands, **attrs), operands, rtol=RTOL)


@pytest.mark.parametrize("flags", list(product((0, 1), repeat=4)))
def test_fused_matmul(flags: tuple[int, ...]) -> None:
    batch_a, a, batch_b, b = flags

    def stored(rows: int, columns: int, batch: int, trans: int) -> Any:
        shape = [columns, rows] if trans else [rows, columns]
        return _floats(*([shape[0], 2, shape[1]] if batch else [2, *shape]))

    operands = [stored(3, 4, batch_a, a), stored(4, 5, batch_b, b)]
    proto = single_node(
        "FusedMatMul", 17, operands, domain="com.microsoft",
        transA=a, transB=b, transBatchA=batch_a, transBatchB=batch_b, alpha=0.5,
    )  # fmt: skip
    module = check_agreement(proto, operands, rtol=RTOL)
    assert module.graph.outputs[0].shape == (2, 3, 5)


@pytest.mark.parametrize(
    ("activation", "attrs"),
    [
        ("Relu", {}), ("Tanh", {}), ("Sigmoid", {}), ("LeakyRelu", {"activation_alpha": 0.3}),
        ("HardSigmoid", {"activation_alpha": 0.3, "activation_beta": 0.4}),
    ],
)  # fmt: skip
def test_fused_gemm(activation: str, attrs: dict[str, float]) -> None:
    operands = [RNG.standard_normal(s).astype(np.float32) for s in ((3, 4), (5, 4), (5,))]
    proto = single_node(
        "FusedGemm", 17, operands, domain="com.microsoft", transB=1, activation=activation, **attrs
    )
    check_agreement(proto, operands, rtol=RTOL)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("opset", [12, 13, 22])
def test_cross_entropy(reduction: str, opset: int) -> None:
    operands = [_floats(3, 5, 2), RNG.integers(0, 5, (3, 2)), _floats(5)]
    proto = single_node(
        "SoftmaxCrossEntropyLoss", opset, operands, num_outputs=2,
        reduction=reduction, ignore_index=2,
    )  # fmt: skip
    check_agreement(proto, operands, rtol=RTOL)


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(("interleaved", "size"), [(0, 0), (1, 0), (0, 4), (1, 4)])
def test_contrib_rotary_embedding(interleaved: int, size: int, flat: bool, offset: bool) -> None:
    x, half = _floats(2, 3, 4, 8), (size or 8) // 2
    positions = np.array([3]) if offset else RNG.integers(0, 9, (2, 4))
    if flat:
        x = x.transpose(0, 2, 1, 3).reshape(2, 4, 24)
    operands = [x, positions, _floats(9, half), _floats(9, half)]
    proto = single_node(
        "RotaryEmbedding", 17, operands, domain="com.microsoft", interleaved=interleaved,
        rotary_embedding_dim=size, num_heads=3 if size else 0,
    )  # fmt: skip
    check_agreement(proto, operands, rtol=RTOL)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize("normalized", [0, 1])
@pytest.mark.parametrize("rank", [2, 3])
def test_contrib_moe(activation: str, normalized: int, rank: int) -> None:
    x, router = (RNG.standard_normal((6, n)).astype(np.float32) for n in (8, 4))
    operands = [x if rank == 2 else x.reshape(2, 3, 8), router, _floats(4, 16, 8), _floats(4, 16),
                _floats(4, 8, 16), _floats(4, 8)]  # fmt: skip
    proto = single_node(
        "MoE", 17, operands, domain="com.microsoft", k=2, activation_type=activation,
        normalize_routing_weights=normalized,
    )  # fmt: skip
    check_agreement(proto, operands, rtol=RTOL)


def test_attention_of_a_decoder_keeps_its_symbols() -> None:
    # one new position per call against a cache of P positions
    b, past = "B", "P"
    inputs = [("q", [b, 1, 8 * 4]), ("k", [b, 1, 2 * 4]), ("v", [b, 1, 2 * 4]),
              ("pk", [b, 2, past, 4]), ("pv", [b, 2, past, 4])]  # fmt: skip
    node = helper.make_node(
        "Attention", ["q", "k", "v", "", "pk", "pv"], ["y", "nk", "nv"],
        q_num_heads=8, kv_num_heads=2, is_causal=1,
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info(n, 1, s) for n, s in inputs],
        [onnx.ValueInfoProto(name=n) for n in node.output],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    module = load_onnx(proto)
    (attend,) = (node for node in module.graph if node.op is attention.attention)
    assert attend.attrs["kv_groups"] == 4
    assert attend.attrs["causal_offset"] == Dim.of(module.symbols["P"])
    assert attend.attrs["scale"] == 0.5
    assert [x.shape for x in module.graph.outputs][1] == (
        Dim.of(module.symbols["B"]), 2, Dim.of(module.symbols["P"]) + 1, 4,
    )  # fmt: skip
    assert sum(node.op is slicing.concat for node in module.graph) == 2
    # one new position sees its whole cache: no mask is made
    emitted = {node.op_type for node in to_proto(module).graph.node}
    assert "Attention" in emitted
    assert emitted.isdisjoint({"Range", "LessOrEqual", "Where"})
    shapes = {"B": 3, "P": 5}
    arrays = [_floats(*(shapes.get(d, d) for d in s)) for _, s in inputs]  # type: ignore[call-overload]
    check_agreement(proto, arrays, rtol=RTOL)
