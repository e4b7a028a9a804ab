from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from regraft.ir.axis_binding import rule_of
from regraft.ir.dims import Dim
from regraft.ir.errors import TypeInferenceError
from regraft.ir.graph import Graph, Node
from regraft.ir.ops import OPS, reduce
from regraft.ir.ops.einsum import parse_equation
from regraft.ir.types import DType, TensorType
from regraft.soundness import Sample, attack, floats

B, S = Dim.of("B"), Dim.of("S")


def _node(op: str, *shapes: tuple[Any, ...] | None, **attrs: Any) -> Node:
    graph = Graph()
    inputs = [graph.add_input(None, TensorType(DType.F32, shape)) for shape in shapes]
    return graph.create(OPS[op], inputs, attrs)


@pytest.mark.parametrize(
    ("op", "shapes", "attrs", "expected"),
    [
        ("matmul", [(B, S, 8), (8, 5)], {}, (B, S, 5)),
        ("matmul", [(B, 1, S, 8), (3, 8, 5)], {}, (B, 3, S, 5)),
        ("matmul", [(8,), (B, 8, 5)], {}, (B, 5)),
        ("matmul", [(B, 4, 8), (8,)], {}, (B, 4)),
        ("matmul", [(8,), (8,)], {}, ()),
        ("matmul", [None, (8,)], {}, None),
        ("gemm", [(S, 4), (5, S)], {"trans_a": True, "trans_b": True}, (4, 5)),
        ("einsum", [(B, S, 8), (8, 5)], {"equation": "...i,ij->...j"}, (B, S, 5)),
        ("einsum", [(B, S)], {"equation": "ij"}, (B, S)),
        ("einsum", [(B, 7), (7, S)], {"equation": "Ab,bC"}, (B, S)),
        ("einsum", [(S, S)], {"equation": "ii->i"}, (S,)),
        ("einsum", [(B, 1), (B, S)], {"equation": "ij,ij->ij"}, (B, S)),
        ("det", [(B, S, S)], {}, (B,)),
    ],
)
def test_shapes_follow(op: str, shapes: list[Any], attrs: dict[str, Any], expected: Any) -> None:
    assert _node(op, *shapes, **attrs).output.shape == expected


def test_sizes_that_only_run_time_can_compare_are_assumed_equal() -> None:
    node = _node("matmul", (4, B), (S, 5))
    assert node.graph is not None
    assert [(a.left, a.right) for a in node.graph.scope.assumptions.values()] == [(B, S)]


@pytest.mark.parametrize(
    ("op", "shapes", "attrs", "message"),
    [
        ("matmul", [(4, 3), (4, 5)], {}, "the contracted axes have sizes 3 and 4"),
        ("matmul", [(), (4, 5)], {}, "rank 0"),
        ("gemm", [(4, 3, 2), (2, 5)], {}, "`a` must have rank 2"),
        ("einsum", [(4, 3)], {"equation": "ij,jk->ik"}, "2 terms for 1 operands"),
        ("einsum", [(4, 3)], {"equation": "ijk->i"}, "does not fit rank 2"),
        ("einsum", [(4, 3)], {"equation": "i1->i"}, "more than letters"),
        ("einsum", [(4, 3)], {"equation": "ij->ik"}, "`k` of the result is in no operand"),
        ("softmax", [(4, 3)], {"axis": 2}, "out of range"),
        ("nll_loss", [(4, 3), (4, 3)], {}, "every axis of the log-probabilities but the second"),
    ],
)
def test_operands_that_do_not_fit_are_named(
    op: str, shapes: list[Any], attrs: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeInferenceError, match=message):
        _node(op, *shapes, **attrs)


@pytest.mark.parametrize("equation", ["ij,jk->ik", "...ij,jk->...ik", "ii->i", "ij->", "a,b", "Ab"])
def test_implicit_and_explicit_results_are_numpys(equation: str) -> None:
    parsed = parse_equation(equation)
    text = f"{','.join(''.join(t) for t in parsed.terms)}->{''.join(parsed.result)}"
    arrays = [np.random.default_rng(0).random((3,) * len(t)) for t in parsed.terms]
    assert np.array_equal(np.einsum(text, *arrays), np.einsum(equation, *arrays))


@pytest.mark.parametrize(
    ("equation", "shapes", "rule"),
    [
        ("ij,jk->ik", [(3, 4), (4, 5)], "i ~j, ~j k -> i k"),
        ("...ij,jk", [(2, 3, 4), (4, 5)], "*rest i ~j, ~j k -> *rest i k"),
        ("ij,ij->i", [(3, 1), (3, 5)], "i 1, i ~j -> i"),
    ],
)
def test_the_equation_is_the_rule(equation: str, shapes: list[Any], rule: str) -> None:
    from regraft.ir.axes import parse_rule

    assert rule_of(_node("einsum", *shapes, equation=equation)) == parse_rule(rule)
    operands = tuple(floats(*shape) for shape in shapes)
    assert attack(OPS["einsum"], Sample(operands, {"equation": equation})).broken == []


@pytest.mark.parametrize("bias", [None, (), (1,), (5,), (1, 5), (3, 1), (3, 5)])
@pytest.mark.parametrize("trans", [(False, False), (True, False), (False, True), (True, True)])
def test_gemm_rule_holds_for_every_layout(bias: Any, trans: tuple[bool, bool]) -> None:
    operands = (
        floats(*((4, 3) if trans[0] else (3, 4))),
        floats(*((5, 4) if trans[1] else (4, 5))),
        None if bias is None else floats(*bias),
    )
    attrs = {"alpha": 0.5, "beta": 2.0, "trans_a": trans[0], "trans_b": trans[1]}
    report = attack(OPS["gemm"], Sample(operands, attrs))
    assert report.broken == []
    assert report.tested == {"m", "k", "n"}


@pytest.mark.parametrize("spec", reduce.OPS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("axes", [(0,), (1, 2), ()])
def test_reduction_rules_hold(spec: Any, axes: tuple[int, ...]) -> None:
    for keepdims in (False, True):
        report = attack(spec, Sample((floats(3, 4, 5), None), {"axes": axes, "keepdims": keepdims}))
        assert report.broken == []
        kept = {f"a{i}" for i in range(3) if i not in axes}
        dropped = {f"a{i}" for i in axes} if spec in _SUMS else set()
        assert report.tested == kept | dropped


_SUMS = {
    reduce.reduce_sum, reduce.reduce_l1, reduce.reduce_l2, reduce.reduce_log_sum,
    reduce.reduce_sum_square,
}  # fmt: skip


@pytest.mark.parametrize(
    ("op", "expected"),
    [("reduce_prod", 12 * S), ("reduce_sum", S + 7), ("reduce_max", None), ("reduce_min", None)],
)
def test_reductions_of_sizes_are_sizes(op: str, expected: Any) -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.F32, (3, 4, S)))
    shape = graph.create(OPS["shape"], [x]).output
    for keepdims in (False, True):
        out = graph.create(OPS[op], [shape], {"axes": (0,), "keepdims": keepdims}).output
        if expected is None:
            wanted = str(out.content)
            assert "S" in wanted
        else:
            assert out.content == ((expected,) if keepdims else expected)


def test_a_reduction_over_unknown_axes_keeps_the_rank_it_can() -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.F32, (3, 1, 5)))
    axes = graph.add_input("axes", TensorType(DType.I64, (1,)))
    kept = graph.create(reduce.reduce_sum, [x, axes]).output
    assert kept.rank == 3
    assert kept.shape is not None
    assert kept.shape[1] == 1
    assert graph.create(reduce.reduce_sum, [x, axes], {"keepdims": False}).output.shape is None
