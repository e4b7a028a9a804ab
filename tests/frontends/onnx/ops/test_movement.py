"""Data movement of every opset version: ONNX Runtime, our files and the evaluator agree exactly."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from onnx import helper

from regraft.frontends.onnx import load_onnx
from tests.single_node import check_agreement, single_node

X = np.arange(2 * 3 * 4 * 6, dtype=np.float32).reshape(2, 3, 4, 6) + 1
I64_MAX, I64_MIN, I32_MAX = 2**63 - 1, -(2**63), 2**31 - 1


def ints(*values: int, dtype: Any = np.int64) -> np.ndarray[Any, Any]:
    return np.array(values, dtype)


# (operator, opset, data, parameter operands, attributes, results)
CASES: list[tuple[str, int, Any, list[Any], dict[str, Any], int]] = [
    ("Shape", 7, X, [], {}, 1),
    ("Shape", 15, X, [], {"start": -3, "end": -1}, 1),
    ("Size", 7, X, [], {}, 1),
    ("Reshape", 7, X, [ints(0, -1, 2)], {}, 1),
    ("Reshape", 13, X, [ints(6, 0, -1)], {}, 1),
    ("Reshape", 14, X[:0], [ints(0, 5, 7)], {"allowzero": 1}, 1),
    ("Reshape", 19, X, [ints(1, 6, 24)], {}, 1),
    ("Flatten", 7, X, [], {}, 1),
    ("Flatten", 9, X, [], {"axis": 0}, 1),
    ("Flatten", 11, X, [], {"axis": -1}, 1),
    ("Flatten", 13, X, [], {"axis": 4}, 1),
    ("Transpose", 7, X, [], {}, 1),
    ("Transpose", 13, X, [], {"perm": [2, 0, 3, 1]}, 1),
    ("Squeeze", 7, X[:, :1, :, :1], [], {"axes": [1, 3]}, 1),
    ("Squeeze", 11, X[:1], [], {"axes": [-4]}, 1),
    ("Squeeze", 13, X[:1, :, :1], [ints(-2, 0)], {}, 1),
    ("Unsqueeze", 7, X, [], {"axes": [0, 3]}, 1),
    ("Unsqueeze", 11, X, [], {"axes": [-1]}, 1),
    ("Unsqueeze", 13, X, [ints(-1, 2)], {}, 1),
    ("Slice", 7, X, [], {"starts": [1, -3], "ends": [I32_MAX, -1], "axes": [2, 3]}, 1),
    ("Slice", 9, X, [], {"starts": [0, 1], "ends": [1, I64_MAX]}, 1),
    ("Slice", 10, X, [ints(-1), ints(I64_MIN), ints(3), ints(-2)], {}, 1),
    ("Slice", 13, X, [ints(1, dtype=np.int32), ints(9, dtype=np.int32)], {}, 1),
    ("Slice", 13, X, [ints(5), ints(2), ints(-1)], {}, 1),
    ("Split", 7, X, [], {"axis": 3}, 3),
    ("Split", 11, X, [], {"axis": -1, "split": [1, 5]}, 2),
    ("Split", 13, X, [ints(1, 2, 1)], {"axis": 2}, 3),
    ("Split", 13, X, [], {"axis": 2}, 2),
    ("Split", 18, X[..., :5], [], {"axis": 3, "num_outputs": 3}, 3),
    ("Split", 18, X, [], {"axis": 3, "num_outputs": 3}, 3),
    ("Expand", 8, X[:, :1], [ints(5, 1, 7, 1, 1)], {}, 1),
    ("Expand", 13, X[:, :1], [ints(7, 4, 6)], {}, 1),
    ("Tile", 7, X, [ints(1, 2, 1, 3)], {}, 1),
    ("Pad", 7, X, [], {"pads": [0, 1, 0, 2, 0, 0, 1, -3], "value": 2.5}, 1),
    ("Pad", 7, X, [], {"pads": [0, 0, 2, 1, 0, 0, 1, 0], "mode": "reflect"}, 1),
    ("Pad", 11, X, [ints(0, 0, 2, 1, 0, 0, 1, 0)], {"mode": "edge"}, 1),
    ("Pad", 13, X, [ints(0, 0, 2, 1, 0, 0, 1, 0), np.array(-1, np.float32)], {}, 1),
    ("Pad", 18, X, [ints(1, 2), None, ints(-1)], {}, 1),
    ("Pad", 19, X, [ints(1, 2, 2, 1), None, ints(1, 3)], {"mode": "wrap"}, 1),
    ("DepthToSpace", 7, np.tile(X, (1, 4, 1, 1)), [], {"blocksize": 2}, 1),
    ("DepthToSpace", 11, np.tile(X, (1, 4, 1, 1)), [], {"blocksize": 2, "mode": "CRD"}, 1),
    ("SpaceToDepth", 7, X, [], {"blocksize": 2}, 1),
    ("ReverseSequence", 10, X, [ints(1, 2, 0)], {"time_axis": 0, "batch_axis": 1}, 1),
]


FORMS = [
    pytest.param(*case, form, id=f"{case[0]}-{case[1]}-{form}-{i}")
    for i, case in enumerate(CASES)
    for form in ("static", "symbolic", "at_run_time")
    if form != "at_run_time" or case[3]
]


@pytest.mark.parametrize(("op_type", "opset", "x", "params", "attrs", "num_outputs", "form"), FORMS)
def test_movement_agrees(
    op_type: str, opset: int, x: Any, params: list[Any], attrs: Any, num_outputs: int, form: str
) -> None:
    operands = [x, *params]
    constant = () if form == "at_run_time" else tuple(range(1, len(operands)))
    proto = single_node(
        op_type, opset, operands,
        constant=constant, symbolic=form == "symbolic", num_outputs=num_outputs,
        **{name: value for name, value in attrs.items() if name != "num_outputs"},
    )  # fmt: skip
    if "num_outputs" in attrs:
        attribute = helper.make_attribute("num_outputs", attrs["num_outputs"])
        proto.graph.node[0].attribute.append(attribute)
    check_agreement(proto, operands, constant=constant, rtol=0)


@pytest.mark.parametrize("opset", [7, 11, 13])
def test_concat_agrees(opset: int) -> None:
    operands: list[Any] = [X, X[:, :1], X[:, :2]]
    for symbolic in (False, True):
        proto = single_node(
            "Concat", opset, operands, symbolic=symbolic, axis=1 if opset < 11 else -3
        )
        check_agreement(proto, operands, rtol=0)


@pytest.mark.parametrize("seed", range(60))
def test_slice_agrees_at_random_boundaries(seed: int) -> None:
    rng = random.Random(seed)
    x = X[: rng.choice([0, 1, 2])] if seed % 5 == 0 else X
    edges = [*range(-8, 9), I64_MAX, I32_MAX, -I32_MAX, I64_MIN]
    axes = rng.sample(range(4), rng.randint(1, 3))
    steps = [rng.choice([1, 1, 2, 3, -1, -2]) for _ in axes]
    operands: list[Any] = [
        x,
        ints(*(rng.choice(edges) for _ in axes)),
        ints(*(rng.choice(edges) for _ in axes)),
        ints(*(axis - rng.choice([0, 4]) for axis in axes)),
        ints(*steps),
    ]
    # a symbol of an input stands for 1 or more
    for symbolic in (False, True) if x.size else (False,):
        constant = (1, 2, 3, 4)
        proto = single_node("Slice", 13, operands, constant=constant, symbolic=symbolic)
        check_agreement(proto, operands, constant=constant, rtol=0)
    check_agreement(single_node("Slice", 13, operands), operands, rtol=0)


def test_slice_with_operands_of_two_integer_types_is_cast() -> None:
    # starts come at run time as i32, the rest is constant: our file must not mix i32 and i64
    operands: list[Any] = [X, ints(1, dtype=np.int32), ints(3, dtype=np.int32)]
    proto = single_node("Slice", 13, operands, constant=(2,))
    check_agreement(proto, operands, constant=(2,), rtol=0)


def test_center_crop_pad_agrees() -> None:
    for target in ((3, 9), (2, 5), (7, 6)):
        operands: list[Any] = [X, ints(*target)]
        for constant in ((1,), ()):
            proto = single_node("CenterCropPad", 18, operands, constant=constant, axes=[2, 3])
            check_agreement(proto, operands, constant=constant, rtol=0)


def test_slice_static_form_is_normal() -> None:
    operands: list[Any] = [X, ints(0), ints(2), ints(-1)]
    module = load_onnx(single_node("Slice", 13, operands, constant=(1, 2, 3)))
    (node,) = [node for node in module.graph if node.op.name == "slice"]
    assert node.attrs == {"starts": (0,), "ends": (2,), "axes": (3,), "steps": (1,)}
    assert node.inputs[1:] == [None] * 4
