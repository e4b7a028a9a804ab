"""Einsums that experts are spelled in become products and sums, and others stay."""

from __future__ import annotations

import numpy as np
import pytest

import regraft
from regraft.ir.builder import Builder
from regraft.ir.dims import Dim
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.ir.ops.einsum import einsum
from regraft.ir.types import DType, TensorType
from regraft.ir.weights import ArrayWeight, Role

RNG = np.random.default_rng(0)
SIZES = {"e": 3, "d": 4, "f": 5}


def _module(equation: str, stacked: bool) -> tuple[Module, dict[str, np.ndarray]]:
    """Returns `x, w -> y`; labels b and s are symbols, `w` a parameter where it is `stacked`."""
    graph = Graph()
    b = Builder(graph)
    symbols = {label: Dim.of(graph.scope.symbol(label.upper(), lo=1)) for label in "bs"}
    values, sample = [], {}
    for name, term in zip("xw", equation.partition("->")[0].split(","), strict=True):
        shape = tuple(SIZES.get(label, 2) for label in term)
        array = RNG.standard_normal(shape).astype(np.float32)
        if name == "w" and stacked:
            values.append(b.weight("w", ArrayWeight(array), Role.PARAM))
            continue
        sizes = tuple(symbols.get(label, size) for label, size in zip(term, shape, strict=True))
        values.append(graph.add_input(name, TensorType(DType.F32, sizes)))
        sample[name] = array
    graph.set_outputs([("y", b.op(einsum, *values, equation=equation))])
    return Module(graph, "m"), sample


@pytest.mark.parametrize(
    ("equation", "stacked", "op"),
    [
        ("bsd,edf->bsef", True, "matmul"),
        ("bsd,efd->ebsf", True, "matmul"),
        ("bsef,efd->bsed", True, "matmul"),
        ("besf,efd->bdes", True, "matmul"),
        ("bsed,bse->bsd", False, "reduce_sum"),
        ("ebsd,bse->dbs", False, "reduce_sum"),
    ],
)
def test_products_by_stacks_and_weighted_sums(equation: str, stacked: bool, op: str) -> None:
    module, sample = _module(equation, stacked)
    want = evaluate(module, sample, oracle=True)["y"]
    regraft.apply(module, "canonicalize", check="off")
    names = {node.op.name for node in module.graph}
    assert op in names
    assert "einsum" not in names
    got = evaluate(module, sample, oracle=True)["y"]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("equation", ["bsd,edf->bsf", "bsd,edf->bsefd", "bsd,bsd->b"])
def test_other_einsums_stay(equation: str) -> None:
    module, _ = _module(equation, stacked="edf" in equation)
    regraft.apply(module, "canonicalize", check="off")
    assert any(node.op is einsum for node in module.graph)
