from __future__ import annotations

from typing import Any

import pytest

from regraft.ir.dims import Dim
from regraft.ir.flops import flops_of, macs_of
from regraft.ir.graph import Graph, Node
from regraft.ir.ops import OPS
from regraft.ir.types import DType, TensorType

B, S, P = (Dim.of(name) for name in "BSP")
_WINDOW = {"strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 0)}


def _node(op: str, *shapes: tuple[Any, ...] | None, dtype: DType = DType.F32, **attrs: Any) -> Node:
    graph = Graph()
    inputs = [graph.add_input(None, TensorType(dtype, shape)) for shape in shapes]
    return graph.create(OPS[op], inputs, attrs)


@pytest.mark.parametrize(
    ("op", "shapes", "attrs", "macs"),
    [
        ("matmul", [(B, S, 64), (64, 256)], {}, B * S * 64 * 256),
        ("matmul", [(64,), (64,)], {}, 64),
        ("gemm", [(64, S), (256, 64)], {"trans_a": True, "trans_b": True}, S * 64 * 256),
        ("einsum", [(B, 8, S, 64), (B, 8, P, 64)], {"equation": "bhsd,bhtd->bhst"},
         B * S * P * 512),
        ("attention", [(B, 8, S, 64), (B, 2, P, 64), (B, 2, P, 32)],
         {"scale": 1.0, "kv_groups": 4}, B * 8 * S * P * 96),
        ("moe", [(B, S, 16), (B, S, 9), (9, 32, 16), (9, 16, 32), (9, 32, 16)], {"top_k": 2},
         B * S * 2 * 3 * 32 * 16),
        ("conv", [(B, 8, 10, 10), (12, 8, 3, 3)], _WINDOW, B * 12 * 8 * 8 * 8 * 9),
        ("conv", [(B, 8, 10, 10), (8, 1, 3, 3)], {**_WINDOW, "groups": 8},
         B * 8 * 8 * 8 * 9),  # depthwise
        # write and read of a [16, 24] state per token, read once per query head
        ("linear_attention", [(B, 4, S, 16), (B, 2, S, 16), (B, 2, S, 24)],
         {"rule": "linear", "scale": 1.0, "kv_groups": 2}, B * S * 16 * 24 * (2 + 4)),
    ],
)  # fmt: skip
def test_contractions_count_two_flops_per_mac(
    op: str, shapes: list[Any], attrs: dict[str, Any], macs: Any
) -> None:
    node = _node(op, *shapes, **attrs)
    assert flops_of(node) == 2 * macs
    assert macs_of(node) == macs


@pytest.mark.parametrize(
    ("op", "shapes", "attrs", "flops"),
    [
        ("relu", [(B, 64)], {}, B * 64),
        ("add", [(B, 64), (64,)], {}, B * 64),
        ("reduce_sum", [(B, 64)], {"axes": (1,)}, B * 64),
        ("softmax", [(B, 64)], {}, B * 64 * 5),
        ("max_pool", [(B, 3, 8, 8)], {**_WINDOW, "kernel": (2, 2)}, B * 3 * 49 * 4),
        ("max_pool", [(B, 3, 2, 2)], {**_WINDOW, "kernel": (5, 5), "pads": (2, 2, 2, 2)},
         B * 3 * 4 * 4),
        ("transpose", [(B, 64)], {"perm": (1, 0)}, 0),
        ("shape", [(B, 64)], {}, 0),
    ],
)  # fmt: skip
def test_other_operators_have_no_macs(
    op: str, shapes: list[Any], attrs: dict[str, Any], flops: Any
) -> None:
    node = _node(op, *shapes, **attrs)
    assert flops_of(node) == flops
    assert macs_of(node) == 0


def test_unknown_is_none_not_zero() -> None:
    assert flops_of(_node("matmul", None, (64, 256))) is None
    assert macs_of(_node("matmul", None, (64, 256))) is None
    assert flops_of(_node("relu", None)) is None


def test_integer_arithmetic_is_free_unless_it_contracts() -> None:
    assert flops_of(_node("add", (4,), (4,), dtype=DType.I64)) == 0
    assert macs_of(_node("matmul", (4, 5), (5, 6), dtype=DType.I32)) == 120
