"""Gathering, scattering and choices of every opset version agree exactly in all three places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.single_node import check_agreement, single_node

RNG = np.random.default_rng(0)
X = RNG.permutation(2 * 3 * 4).reshape(2, 3, 4).astype(np.float32)


def ints(*values: Any, dtype: Any = np.int64) -> np.ndarray[Any, Any]:
    return np.array(values, dtype)


ROWS = RNG.integers(-3, 3, (2, 5, 4))
PAIRS = ints([0, 2], [1, -1])
# whole numbers: sums and products are exact in f32 and in f64
UPDATES = RNG.integers(-4, 5, (2, 5, 4)).astype(np.float32)

# (operator, opset, operands, attributes, results)
CASES: list[tuple[str, int, list[Any], dict[str, Any], int]] = [
    ("Gather", 7, [X, ints([2, 0], [1, 1])], {"axis": 1}, 1),
    ("Gather", 11, [X, ints([-1, 0], dtype=np.int32)], {"axis": -1}, 1),
    ("Gather", 13, [X, np.array(1)], {}, 1),
    ("GatherElements", 11, [X, ROWS], {"axis": 1}, 1),
    ("GatherElements", 13, [X, ROWS[:1, :, :2].astype(np.int32)], {"axis": -2}, 1),
    ("GatherND", 11, [X, PAIRS], {}, 1),
    ("GatherND", 12, [X, ints([[1], [0]], [[2], [-1]])], {"batch_dims": 1}, 1),
    ("Scatter", 9, [X, ints([[0, 1]], [[1, 0]]), UPDATES[:, :1, :2]], {"axis": 2}, 1),
    ("ScatterElements", 11, [X, ints([[0, -1]], [[1, 0]]), UPDATES[:, :1, :2]], {"axis": -1}, 1),
    ("ScatterElements", 16, [X, ROWS, UPDATES], {"axis": 1, "reduction": "add"}, 1),
    ("ScatterElements", 18, [X, ROWS, UPDATES], {"axis": 1, "reduction": "max"}, 1),
    ("ScatterND", 11, [X, PAIRS, UPDATES[0, :2]], {}, 1),
    ("ScatterND", 16, [X, ints([0], [0]), UPDATES[:, :3]], {"reduction": "mul"}, 1),
    ("ScatterND", 18, [X, ints([0], [0]), UPDATES[:, :3]], {"reduction": "min"}, 1),
    ("TopK", 7, [X], {"k": 2, "axis": 1}, 2),
    ("TopK", 10, [X, ints(3)], {}, 2),
    ("TopK", 11, [X, ints(2)], {"axis": -2, "largest": 0}, 2),
    ("ArgMax", 7, [X], {"axis": 1}, 1),
    ("ArgMax", 12, [np.zeros((2, 3), np.float32)], {"axis": -1, "select_last_index": 1}, 1),
    ("ArgMin", 13, [X], {"axis": 2, "keepdims": 0}, 1),
    ("OneHot", 9, [ints(0, 3, -1), np.array(4), ints(5, 7)], {}, 1),
    ("OneHot", 11, [ints([0, 3]), np.array(4, np.float32), np.float32([0, 1])], {"axis": 0}, 1),
    ("Compress", 9, [X, np.array([True, False, True])], {"axis": 1}, 1),
    ("Compress", 11, [X, np.array([False, True, False, True])], {}, 1),
    ("NonZero", 9, [X - 3], {}, 1),
    ("NonZero", 13, [np.array(2, np.float32)], {}, 1),
    ("Unique", 11, [ints(3, 1, 3, 0, 1)], {}, 4),
    ("Unique", 11, [np.float32([3, 1, 3, 0, 1])], {"sorted": 0}, 4),
    ("Unique", 11, [X[[0, 1, 0]]], {"axis": 0}, 4),
    ("Unique", 11, [ints(3, 1, 3)], {}, 1),
]


@pytest.mark.parametrize(
    ("op_type", "opset", "operands", "attrs", "num_outputs"),
    CASES,
    ids=[f"{case[0]}-{case[1]}-{i}" for i, case in enumerate(CASES)],
)
@pytest.mark.parametrize("form", ["static", "symbolic", "at_run_time"])
def test_indexing_agrees(
    op_type: str, opset: int, operands: list[Any], attrs: Any, num_outputs: int, form: str
) -> None:
    constant = () if form == "at_run_time" else tuple(range(1, len(operands)))
    proto = single_node(
        op_type, opset, operands,
        constant=constant, symbolic=form == "symbolic", num_outputs=num_outputs, **attrs,
    )  # fmt: skip
    check_agreement(proto, operands, constant=constant, rtol=0)


def test_tensor_scatter_writes_rows_of_each_sequence() -> None:
    past = RNG.standard_normal((2, 3, 5, 4)).astype(np.float32)
    update = RNG.standard_normal((2, 3, 2, 4)).astype(np.float32)
    for mode, starts in (("linear", ints(0, 3)), ("circular", ints(4, 1))):
        expected = past.copy()
        for row, start in enumerate(starts):
            for i in range(2):
                expected[row, :, (start + i) % 5] = update[row, :, i]
        operands: list[Any] = [past, update, starts]
        proto = single_node("TensorScatter", 24, operands, mode=mode)
        proto.ir_version = 11
        check_agreement(proto, operands, rtol=0, expected=[expected])
