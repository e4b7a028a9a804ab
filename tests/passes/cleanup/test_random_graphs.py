"""Random graphs keep their outputs under canonicalize and fold-norms, and come to rest."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regraft.ir.builder import Builder
from regraft.ir.dims import Dim
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Graph, Value
from regraft.ir.module import Module
from regraft.ir.ops import OPS
from regraft.ir.types import DType, TensorType
from regraft.ir.verify import verify
from regraft.ir.weights import ArrayWeight, Role
from regraft.passes.cleanup import Canonicalize, FoldNorms
from regraft.passes.protocol import Context
from tests.passes.cleanup.rewriting import sample

UNARY = ("relu", "neg", "abs", "sigmoid", "tanh", "identity", "erf")
BINARY = ("add", "sub", "mul", "max", "min")
SIZES = {"B": 2, "S": 3, "N": 4}


def _constant(draw: st.DrawFn, b: Builder, rank: int, last: object) -> Value:
    kind = draw(st.sampled_from(("zero", "one", "number", "vector", "param")))
    numbers = {"zero": 0.0, "one": 1.0, "number": draw(st.sampled_from((-2.0, 0.5, 3.0)))}
    if kind in numbers:
        shape = (1,) * draw(st.integers(0, rank))
        return b.constant(np.full(shape, numbers[kind], np.float32))
    size = last if isinstance(last, int) else 1
    array = np.linspace(-1, 2, size, dtype=np.float32)
    if kind == "vector":
        return b.constant(array)
    return b.weight("p", ArrayWeight(array), Role.PARAM)


def _move(draw: st.DrawFn, b: Builder, x: Value) -> Value:
    shape = x.shape
    assert shape is not None
    rank = len(shape)
    kind = draw(
        st.sampled_from(
            ("transpose", "back", "flatten", "unsqueeze", "slice", "split", "expand", "shape")
        )
    )
    if kind == "transpose" or (kind == "back" and rank < 2):
        return b.op(OPS["transpose"], x, perm=tuple(draw(st.permutations(range(rank)))))
    if kind == "back":
        perm = (1, 0, *range(2, rank))
        return b.op(
            OPS["transpose"], b.op(OPS["relu"], b.op(OPS["transpose"], x, perm=perm)), perm=perm
        )
    if kind == "flatten":
        y = b.op(OPS["reshape"], x, shape=(-1,))
        return b.op(OPS["reshape"], b.op(OPS["relu"], y), shape=shape)
    if kind == "unsqueeze" and rank < 5:
        return b.op(OPS["unsqueeze"], x, axes=(draw(st.integers(0, rank)),))
    axis = draw(st.integers(0, rank - 1))
    if kind == "slice":
        start = draw(st.sampled_from((0, 1, -1)))
        return b.op(OPS["slice"], x, starts=(start,), ends=((1 << 63) - 1,), axes=(axis,))
    if kind == "split" and isinstance(shape[axis], int) and shape[axis] > 1:
        sizes = (1, shape[axis] - 1)
        parts = b.multi(OPS["split"], x, axis=axis, sizes=sizes, num_outputs=2)
        order = draw(st.permutations(range(2)))
        return b.op(OPS["concat"], *(parts[i] for i in order), axis=axis)
    if kind == "shape":
        return b.op(OPS["reshape"], x, b.op(OPS["shape"], x))
    return b.op(OPS["expand"], x, shape=shape)


@st.composite
def modules(draw: st.DrawFn) -> Module:
    """Draws a graph of 2 to 14 operators on two inputs of one shape."""
    graph = Graph()
    b = Builder(graph)
    B, S = (Dim.of(graph.scope.symbol(name)) for name in "BS")
    values = [graph.add_input(name, TensorType(DType.F32, (B, S, 4))) for name in ("x", "z")]
    for _ in range(draw(st.integers(2, 14))):
        x = draw(st.sampled_from(values))
        shape = x.shape
        assert shape is not None
        kind = draw(
            st.sampled_from(("unary", "binary", "constant", "move", "move", "reduce", "matmul"))
        )
        if kind == "unary":
            values.append(b.op(OPS[draw(st.sampled_from(UNARY))], x))
        elif kind == "binary":
            same = [v for v in values if v.shape == shape]
            y = draw(st.sampled_from(same))
            values.append(b.op(OPS[draw(st.sampled_from(BINARY))], x, y))
        elif kind == "constant" and shape:
            op = OPS[draw(st.sampled_from(BINARY))]
            values.append(
                b.op(op, *draw(st.permutations((x, _constant(draw, b, len(shape), shape[-1])))))
            )
        elif kind == "move" and shape:
            values.append(_move(draw, b, x))
        elif kind == "reduce" and shape:
            axis = draw(st.integers(0, len(shape) - 1))
            op = OPS[draw(st.sampled_from(("reduce_max", "reduce_mean", "reduce_sum")))]
            values.append(b.op(op, x, axes=(axis,), keepdims=draw(st.booleans())))
        elif kind == "matmul" and shape and isinstance(shape[-1], int):
            w = np.eye(shape[-1], 3, dtype=np.float32) * 2
            values.append(b.op(OPS["matmul"], x, b.weight("w", ArrayWeight(w), Role.PARAM)))
    outputs = draw(st.lists(st.sampled_from(values[2:] or values), min_size=1, max_size=3))
    for i, value in enumerate(outputs):
        graph.add_output(f"y{i}", value)
    return Module(graph)


@pytest.mark.parametrize("fold", [False, True])
@given(module=modules())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_outputs_stay_and_a_second_run_does_nothing(fold: bool, module: Module) -> None:
    inputs = sample(module, SIZES)
    expected = evaluate(module, inputs)
    exact = evaluate(module, inputs, oracle=True)
    passes = (Canonicalize(), FoldNorms(), Canonicalize()) if fold else (Canonicalize(),)
    for item in passes:
        item.run(module, Context())
    assert verify(module, "full") == []
    actual = evaluate(module, inputs)
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype
        assert actual[name].shape == array.shape
        if not array.size:
            continue
        scale = max(1.0, float(np.abs(exact[name]).max()))
        noise = float(np.abs(array - exact[name]).max())
        bound = max(16 * float(np.finfo(np.float32).eps) * scale, 8 * noise)
        close = np.abs(actual[name].astype(np.float64) - exact[name]) <= bound
        assert close.all(), (name, bound)
    for item in reversed(passes):
        assert not item.run(module, Context()).changed
