"""What tests of rewrites share: text in, expressions out, equal numbers on random inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from regraft.ir.constants import constant_of, literal, weight
from regraft.ir.dims import bind
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.text import parse_module
from regraft.ir.types import TensorType
from regraft.ir.verify import verify
from regraft.passes.cleanup import Canonicalize
from regraft.passes.protocol import Context, Pass, PassResult

Array = np.ndarray[Any, Any]

BINDINGS: tuple[Mapping[str, int], ...] = ({"B": 2, "S": 3, "N": 4}, {"B": 1, "S": 5, "N": 2})


def parse(text: str) -> Module:
    """Returns the module of a text; the symbols B, S and N are declared."""
    return parse_module("symbol B\nsymbol S\nsymbol N\n" + text)


def show(value: Value, known: Mapping[Value, str] | None = None) -> str:
    """Returns the expression of a value: inputs by name, constants by value, weights as `@name`."""
    producer = value.producer
    if known and value in known:
        return known[value]
    if producer is None:
        return str(value.name)
    if producer.op is weight:
        return f"@{producer.attrs['name']}"
    if producer.op is literal:
        array = producer.attrs["value"]
        return str(array.tolist()).replace(" ", "")
    operands = ["_" if v is None else show(v, known) for v in producer.inputs]
    while operands and operands[-1] == "_":
        operands.pop()
    defaults = producer.op.defaults
    attrs = [
        f"{name}={_attr(item)}"
        for name in sorted(producer.op.all_attrs)
        if (item := producer.attrs[name]) is not None and item != defaults.get(name)
    ]
    result = f"#{value.index}" if value.index else ""
    return f"{producer.op.name}({', '.join([*operands, *attrs])}){result}"


def _attr(item: Any) -> str:
    if isinstance(item, tuple):
        return f"[{','.join(map(str, item))}]"
    return str(item)


def outputs(module: Module) -> str:
    """Returns the expressions of all outputs, joined by `; `."""
    return "; ".join(map(show, module.graph.outputs))


def sample(module: Module, binding: Mapping[str, int], seed: int = 0) -> dict[str, Array]:
    """Returns random inputs: floats of both signs, small integers, both truth values."""
    rng = np.random.default_rng(seed)
    inputs: dict[str, Array] = {}
    for value in module.graph.inputs:
        type_ = value.type
        assert isinstance(type_, TensorType)
        assert type_.dtype is not None
        assert type_.shape is not None
        shape = tuple(bind(dim, binding) for dim in type_.shape)
        drawn = rng.standard_normal(shape) * 3  # type: ignore[arg-type]  # all symbols are bound
        if type_.dtype.value == "bool":
            drawn = drawn > 0
        inputs[str(value.name)] = np.asarray(drawn).astype(type_.dtype.numpy)
    return inputs


def run(module: Module, passes: Sequence[Pass] = (Canonicalize(),)) -> list[PassResult]:
    """Applies passes and checks that the results are equal and that a second run does nothing.

    Algebra reorders a few operations: 16 units in the last place of the largest element.
    """
    samples = [sample(module, binding) for binding in BINDINGS]
    before = [evaluate(module, item) for item in samples]
    types = [value.type for value in module.graph.outputs]
    results = [item.run(module, Context()) for item in passes]
    assert verify(module, "full") == []
    for item, expected in zip(samples, before, strict=True):
        actual = evaluate(module, item)
        assert list(actual) == list(expected)
        for name, array in expected.items():
            assert_close(actual[name], array)
    assert [value.dtype for value in module.graph.outputs] == [t.dtype for t in types]  # type: ignore[union-attr]
    for item in passes:
        again = item.run(module, Context())
        assert not again.changed, again.stats
    return results


def assert_close(actual: Array, expected: Array) -> None:
    """Asserts equality up to rounding: floats to 16 units of the largest element, the rest bits."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if actual.dtype.kind != "f":
        np.testing.assert_array_equal(actual, expected)
        return
    finite = expected[np.isfinite(expected)].astype(np.float64)
    largest = np.abs(finite).max(initial=0.0)
    atol = 16 * float(np.finfo(expected.dtype).eps) * float(largest)
    np.testing.assert_allclose(
        actual.astype(np.float64), expected.astype(np.float64), rtol=0, atol=atol
    )


def canonical(body: str, inputs: str = "%x : f32[B, S, 4]", head: str = "") -> str:
    """Returns the expressions after `canonicalize` of a graph body that ends in `return …`."""
    module = parse(f"{head}\ngraph({inputs}) {{\n{body}\n}}\n")
    run(module)
    return outputs(module)


def constants(module: Module) -> list[Array]:
    """Returns all constants of the main graph."""
    found = (constant_of(node.outputs[0]) for node in module.graph)
    return [array for array in found if array is not None]
