"""Running modules in the numpy evaluator, weights streamed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from regraft.ir.constants import opaque
from regraft.ir.errors import RegraftError, UnsupportedError
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module

Runner = Callable[[Mapping[str, Any]], Mapping[str, Any]]

PROBE_ERRORS = (
    RegraftError, ValueError, IndexError, KeyError, TypeError, OverflowError, ZeroDivisionError,
    np.linalg.LinAlgError,
)  # fmt: skip
"""What running a model on generated inputs may raise when the inputs do not suit it."""


def accepts(
    runner: Callable[[Mapping[str, Any]], Mapping[str, Any]], *, with_empty: bool = False
) -> Callable[[Mapping[str, Any]], bool]:
    """Returns a function that says whether a runner runs given inputs.

    An output of nothing but NaN is no run: at sizes where a model averages over nothing, say, one
    runtime refuses and another goes on, and no error would show. So it is where no output has an
    element, as when nothing is left of a small image.

    Args:
        runner: Runs inputs.
        with_empty: Whether outputs without elements are a run all the same.
    """

    def runs(inputs: Mapping[str, Any]) -> bool:
        try:
            outputs = runner(inputs)
        except PROBE_ERRORS:
            return False
        if outputs and not with_empty and all(map(_is_empty, outputs.values())):
            return False
        return not any(_is_nan(array) for array in outputs.values())

    return runs


def _is_empty(array: Any) -> bool:
    return isinstance(array, np.ndarray) and not array.size


def _is_nan(array: Any) -> bool:
    is_float = isinstance(array, np.ndarray) and array.dtype.kind == "f"
    return is_float and bool(array.size) and bool(np.isnan(array).all())


def lazily(make: Callable[[], Runner]) -> Runner:
    """Returns a runner that is made when it is first called, and answers nothing if it cannot be.

    A session without optimizations of 10,000 nodes takes ONNX Runtime half a minute to build.
    """
    made: list[Runner] = []

    def run(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        if not made:
            try:
                made.append(make())
            except UnsupportedError:
                made.append(lambda inputs: {})
        return made[0](inputs)

    return run


class EvalRunner:
    """Runs a module in the numpy evaluator; one weight at a time is in memory."""

    def __init__(self, module: Module, *, oracle: bool = False, seed: int = 0) -> None:
        self.module = module
        self.oracle = oracle
        self.seed = seed

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the outputs by name."""
        return evaluate(self.module, inputs, oracle=self.oracle, seed=self.seed)


def unevaluable(module: Module) -> list[str]:
    """Returns the operators of the module that have no numpy meaning."""
    names = {
        node.attrs["op_type"] if node.op is opaque else node.op.name
        for node in module.graph.walk()
        if node.op.eval is None
    }
    return sorted(names)


def largest_weight_bytes(module: Module) -> int:
    """Returns the size of the largest weight, the least memory that streaming needs."""
    weights = module.weights
    return max((weights[name].nbytes for name in weights), default=0)


def total_weight_bytes(module: Module) -> int:
    """Returns the size of all weights."""
    weights = module.weights
    return sum(weights[name].nbytes for name in weights)
