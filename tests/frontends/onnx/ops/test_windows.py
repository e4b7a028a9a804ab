"""Convolutions and pools over random windows: ONNX Runtime, our files and the evaluator agree."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from regraft.frontends.onnx import load_onnx
from regraft.ir.ops.conv import conv, conv_transpose
from regraft.ir.ops.pool import max_pool, max_pool_with_indices
from tests.single_node import check_agreement, single_node

EPS = float(np.finfo(np.float32).eps)


def normal(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def windows(rng: random.Random, rank: int, *, same: bool) -> dict[str, Any]:
    kernel = [rng.randint(1, 3) for _ in range(rank)]
    attrs: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": [rng.randint(1, 3) for _ in range(rank)],
    }
    if same:
        # ONNX Runtime pads by a negative amount, and refuses, where a stride exceeds the kernel
        attrs["strides"] = [min(s, k) for s, k in zip(attrs["strides"], kernel, strict=True)]
        attrs["auto_pad"] = rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"])
        return attrs
    attrs["dilations"] = [rng.randint(1, 2) for _ in range(rank)]
    attrs["pads"] = [rng.randint(0, k - 1) for k in kernel * 2]
    return attrs


def sizes(rng: random.Random, rank: int) -> list[int]:
    return [rng.randint(5, 9) for _ in range(rank)]


@pytest.mark.parametrize("seed", range(48))
def test_conv_agrees(seed: int) -> None:
    rng = random.Random(seed)
    rank = rng.choice([1, 2, 2, 3])
    attrs = windows(rng, rank, same=seed % 3 == 0)
    groups = rng.choice([1, 1, 2, 4])
    # depthwise where a group has one input channel, with one or several results per channel
    inner, outer = rng.choice([1, 3]), rng.choice([1, 2])
    x = normal(seed, 2, groups * inner, *sizes(rng, rank))
    weight = normal(seed + 1, groups * outer, inner, *attrs["kernel_shape"])
    bias = rng.choice([None, normal(seed + 2, groups * outer)])
    operands = [x, weight, bias]
    opset = rng.choice([7, 11, 13, 22])
    for symbolic in (False, True):
        proto = single_node(
            "Conv", opset, operands, constant=(1, 2), symbolic=symbolic, group=groups, **attrs
        )
        # f32 sums of `taps` products in another order
        rtol = 4 * EPS * np.sqrt(inner * np.prod(attrs["kernel_shape"]))
        check_agreement(proto, operands, rtol=float(rtol), constant=(1, 2))


@pytest.mark.parametrize("seed", range(36))
def test_conv_transpose_agrees(seed: int) -> None:
    rng = random.Random(seed)
    rank = rng.choice([1, 2, 2, 3])
    attrs = windows(rng, rank, same=seed % 3 == 0)
    if seed % 3:
        attrs["output_padding"] = [rng.randint(0, stride - 1) for stride in attrs["strides"]]
    groups = rng.choice([1, 1, 2])
    inner, outer = rng.choice([1, 3]), rng.choice([1, 2])
    x = normal(seed, 2, groups * inner, *sizes(rng, rank))
    weight = normal(seed + 1, groups * inner, outer, *attrs["kernel_shape"])
    bias = rng.choice([None, normal(seed + 2, groups * outer)])
    operands = [x, weight, bias]
    rtol = float(4 * EPS * np.sqrt(inner * np.prod(attrs["kernel_shape"])))
    for symbolic in (False, True):
        proto = single_node(
            "ConvTranspose", rng.choice([7, 11, 13, 22]), operands, constant=(1, 2),
            symbolic=symbolic, group=groups, **attrs,
        )  # fmt: skip
        check_agreement(proto, operands, rtol=rtol, constant=(1, 2))


@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("symbolic", [False, True])
def test_conv_transpose_with_output_shape_agrees(auto_pad: str, symbolic: bool) -> None:
    operands: list[Any] = [normal(0, 1, 2, 5, 6), normal(1, 2, 3, 3, 3)]
    proto = single_node(
        "ConvTranspose", 13, operands, constant=(1,), symbolic=symbolic,
        strides=[2, 2], output_shape=[8, 11], auto_pad=auto_pad,
    )  # fmt: skip
    module = check_agreement(proto, operands, rtol=16 * EPS, constant=(1,))
    node = module.graph.outputs[0].producer
    assert node is not None
    assert node.op is conv_transpose
    # known sizes make the pads explicit
    assert node.attrs["output_shape"] == ((8, 11) if symbolic else ())


@pytest.mark.parametrize("seed", range(48))
@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool", "LpPool"])
def test_pools_agree(op_type: str, seed: int) -> None:
    rng = random.Random(seed)
    rank = rng.choice([1, 2, 2, 3])
    attrs = windows(rng, rank, same=seed % 3 == 0)
    opset = rng.choice(
        {"MaxPool": [8, 10, 12, 22], "AveragePool": [7, 10, 19, 22], "LpPool": [11, 18, 22]}[
            op_type
        ]
    )
    dilated_since = {"MaxPool": 10, "AveragePool": 19, "LpPool": 18}[op_type]
    ceil_since = {"MaxPool": 10, "AveragePool": 10, "LpPool": 18}[op_type]
    if opset < dilated_since:
        attrs.pop("dilations", None)
    if opset >= ceil_since and seed % 3:
        attrs["ceil_mode"] = rng.randint(0, 1)
    if op_type == "AveragePool":
        attrs["count_include_pad"] = rng.randint(0, 1)
    if op_type == "LpPool":
        attrs["p"] = rng.randint(1, 3)
    num_outputs = 1
    if op_type == "MaxPool" and rng.random() < 0.5:
        attrs["storage_order"] = rng.randint(0, 1)
        num_outputs = 2
    x = normal(seed, 2, 3, *sizes(rng, rank))
    for symbolic in (False, True):
        proto = single_node(
            op_type, opset, [x], symbolic=symbolic, num_outputs=num_outputs, **attrs
        )
        check_agreement(proto, [x], rtol=32 * EPS)  # powers and roots of up to 27 sums


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_max_pool_of_bytes_agrees(dtype: type) -> None:
    info = np.iinfo(dtype)
    x = np.random.default_rng(0).integers(info.min, info.max, (1, 2, 6, 6)).astype(dtype)
    proto = single_node("MaxPool", 12, [x], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    check_agreement(proto, [x], rtol=0)


@pytest.mark.parametrize("opset", [7, 13, 22])
def test_global_pools_agree(opset: int) -> None:
    x = normal(0, 2, 3, 4, 5)
    for op_type in ("GlobalMaxPool", "GlobalAveragePool"):
        check_agreement(single_node(op_type, opset, [x], symbolic=True), [x], rtol=8 * EPS)


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("opset", [7, 22])
def test_global_lp_pool_agrees(p: int, opset: int) -> None:
    x = normal(0, 2, 3, 4, 5)
    # the runtime has no kernel for the version of opset 22: the emitted reduction runs there
    expected = (np.abs(x.astype(np.float64)) ** p).sum((2, 3), keepdims=True) ** (1 / p)
    proto = single_node("GlobalLpPool", opset, [x], symbolic=True, p=p)
    check_agreement(proto, [x], rtol=32 * EPS, expected=[expected.astype(np.float32)])


def test_conv_keeps_same_padding_of_unknown_sizes_only_where_it_depends_on_them() -> None:
    operands: list[Any] = [normal(0, 1, 2, 7, 8), normal(1, 3, 2, 3, 3)]
    for strides, kept in (([1, 1], "none"), ([2, 2], "same_upper")):
        proto = single_node(
            "Conv", 13, operands, constant=(1,), symbolic=True, strides=strides,
            auto_pad="SAME_UPPER",
        )  # fmt: skip
        node = load_onnx(proto).graph.outputs[0].producer
        assert node is not None
        assert node.op is conv
        assert node.attrs["auto_pad"] == kept


def test_max_pool_indices_only_where_named() -> None:
    x = normal(0, 1, 1, 4, 4)
    for num_outputs, op in ((1, max_pool), (2, max_pool_with_indices)):
        proto = single_node("MaxPool", 12, [x], num_outputs=num_outputs, kernel_shape=[2, 2])
        node = load_onnx(proto).graph.outputs[0].producer
        assert node is not None
        assert node.op is op


@pytest.mark.parametrize(
    ("activation", "params"),
    [("Relu", []), ("Tanh", []), ("Sigmoid", []), ("LeakyRelu", [0.3]), ("Clip", [-0.5, 0.5]),
     ("HardSigmoid", [0.3, 0.4])],
)  # fmt: skip
@pytest.mark.parametrize("residual", [False, True])
def test_fused_conv_agrees(activation: str, params: list[float], residual: bool) -> None:
    operands: list[Any] = [normal(0, 1, 4, 6, 6), normal(1, 4, 4, 3, 3), normal(2, 4)]
    if residual:
        operands.append(normal(3, 1, 4, 4, 4))
    proto = single_node(
        "FusedConv", 13, operands, constant=(1, 2), domain="com.microsoft",
        activation=activation, **({"activation_params": params} if params else {}),
    )  # fmt: skip
    check_agreement(proto, operands, rtol=32 * EPS, constant=(1, 2))


@pytest.mark.parametrize("with_past", [False, True])
def test_causal_conv_of_the_runtime_domain_agrees(with_past: bool) -> None:
    operands: list[Any] = [normal(0, 2, 3, 5), normal(1, 3, 1, 4), normal(2, 3)]
    if with_past:
        operands.append(normal(3, 2, 3, 3))
    proto = single_node(
        "CausalConvWithState", 18, operands, constant=(1, 2), domain="com.microsoft",
        num_outputs=2, symbolic=True, activation="silu",
    )  # fmt: skip
    check_agreement(proto, operands, rtol=16 * EPS, constant=(1, 2))


@pytest.mark.parametrize(
    ("groups", "sharing", "mask"), [(1, 1, False), (2, 1, True), (2, 2, True), (1, 2, False)]
)
def test_deform_conv_agrees(groups: int, sharing: int, mask: bool) -> None:
    operands: list[Any] = [
        normal(0, 2, 4, 7, 6),
        normal(1, 6, 4 // groups, 3, 2),
        normal(2, 2, sharing * 12, 4, 5),
        normal(3, 6),
        normal(4, 2, sharing * 6, 4, 5) if mask else None,
    ]
    proto = single_node(
        "DeformConv", 19, operands, constant=(1, 3), group=groups, offset_group=sharing,
        strides=[2, 1], pads=[1, 0, 1, 0],
    )  # fmt: skip
    check_agreement(proto, operands, rtol=64 * EPS, constant=(1, 3))


def test_col2im_of_three_axes_agrees() -> None:
    x = normal(0, 2, 2 * 12, 8)
    operands: list[Any] = [x, np.array([3, 4, 3]), np.array([2, 3, 2])]
    proto = single_node("Col2Im", 18, operands, constant=(1, 2))
    check_agreement(proto, operands, rtol=16 * EPS, constant=(1, 2))


@pytest.mark.parametrize("with_shape", [False, True])
def test_max_unpool_agrees(with_shape: bool) -> None:
    x = normal(0, 1, 2, 3, 3)
    # one index per window of 2 x 2 in planes of 6 x 6
    rows, columns = np.meshgrid(np.arange(3) * 2, np.arange(3) * 2 + 1, indexing="ij")
    plane = rows * 6 + columns
    indices = np.stack([plane, plane + 36])[None].astype(np.int64)
    operands: list[Any] = [x, indices]
    if with_shape:
        operands.append(np.array([1, 2, 6, 6]))
    proto = single_node(
        "MaxUnpool", 11, operands, constant=(2,), kernel_shape=[2, 2], strides=[2, 2]
    )
    check_agreement(proto, operands, rtol=0, constant=(2,))
