"""The noise of a number type: how far outputs move when every value is rounded to it.

The source runs in the numpy evaluator, each value disturbed at random by at most half a step of the
type (Monte Carlo arithmetic). That is independent of which nodes a pass chose to lower, and of the
order in which it rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from regraft.ir.evaluate import Observe, evaluate
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.opspec import Trait
from regraft.ir.types import DType, TensorType
from regraft.passes.analysis.sizes import size_arithmetic
from regraft.passes.check.runners import Runner
from regraft.passes.protocol import Contract, Rounded

Array = np.ndarray[Any, Any]

_NUM_DRAWS = 2


class NoiseRunner:
    """Runs a module and moves every output by what rounding to `dtype` may move it.

    The difference to the plain result is the larger of two random draws, element by element.
    """

    def __init__(self, module: Module, dtype: DType, seed: int = 0) -> None:
        self.module = module
        self.seed = seed
        info = ml_dtypes.finfo(dtype.numpy)
        self.step = float(info.eps) / 2
        self.smallest_step = float(info.smallest_subnormal) / 2
        self.largest = float(info.max) / 2
        self.sizes = size_arithmetic(module.graph)

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the outputs by name, moved."""
        plain = evaluate(self.module, inputs, seed=self.seed)
        worst: dict[str, Any] = dict(plain)
        for draw in range(_NUM_DRAWS):
            moved = evaluate(self.module, inputs, seed=self.seed, observe=self.disturbing(draw + 1))
            for name, array in moved.items():
                worst[name] = _further(plain[name], worst[name], array)
        return worst

    def disturbing(self, draw: int) -> Observe:
        """Returns an observer of an evaluation that disturbs its f32 values."""
        running = np.random.default_rng([self.seed, draw])

        def disturb(value: Value, array: Any) -> Any:
            producer = value.producer
            if value.dtype is not DType.F32 or not isinstance(array, np.ndarray):
                return None
            if producer is None:
                # what enters a body was disturbed outside
                return self._moved(array, running) if value.graph is self.module.graph else None
            if producer in self.sizes or Trait.DATA_MOVEMENT in producer.op.traits:
                return None
            if Trait.CONSTANT in producer.op.traits:
                # read at every use, and rounded the same way at each
                rng = np.random.default_rng([self.seed, draw, abs(producer.order)])
                return self._moved(array, rng)
            return self._moved(array, running)

        return disturb

    def _moved(self, array: Array, rng: np.random.Generator) -> Array:
        size = np.abs(array)
        moved: Array = np.asarray(rng.random(array.shape, np.float32))
        moved -= np.float32(0.5)
        moved *= np.maximum(size * np.float32(2 * self.step), np.float32(2 * self.smallest_step))
        # integers up to 2 / eps are held exactly, zero above all; larger values are kept in f32
        moved[(array == np.rint(array)) & (size <= 1 / self.step) | (size > self.largest)] = 0
        moved += array
        return moved


def _further(plain: Any, worst: Any, moved: Any) -> Any:
    """Returns, element by element, what is further from the plain result."""
    if not isinstance(moved, np.ndarray) or np.shape(moved) != np.shape(plain):
        return worst
    if moved.dtype.kind != "f" or np.shape(worst) != np.shape(plain):
        return moved
    with np.errstate(invalid="ignore"):
        is_further = np.abs(moved - plain) > np.abs(worst - plain)
    return np.where(is_further | np.isnan(moved), moved, worst)


class WorstRunner:
    """Runs a result in two ways and gives, element by element, what is further from the source.

    A runtime may compute half-precision nodes in f32 and drop the rounding between them (ONNX
    Runtime's CPU provider does); where the file runs later, numbers are rounded at every node.
    """

    def __init__(self, source: Runner, rounding: Runner, runtime: Runner) -> None:
        self.source = source
        self.rounding = rounding
        self.runtime = runtime

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the outputs by name."""
        expected, rounded = self.source(inputs), self.rounding(inputs)
        return {
            name: _further(expected[name], rounded[name], array)
            if name in expected and name in rounded
            else array
            for name, array in self.runtime(inputs).items()
        }


def plain_for(contract: Contract, module: Module, otherwise: Runner | None) -> Runner | None:
    """Returns the runner that gives the noise floor of a contract.

    Args:
        contract: What the passes promise.
        module: The source.
        otherwise: The runner for contracts that do not speak of rounding.
    """
    if not isinstance(contract, Rounded) or contract.dtype is None:
        return otherwise
    return NoiseRunner(module, contract.dtype)


def depth_bound(module: Module, dtype: DType) -> float:
    """Returns a relative bound for a module that cannot be evaluated.

    Each node on the longest path rounds once, by half a step; independent errors add like the
    square root of their number, and four times that is allowed.
    """
    depth: dict[Node, int] = {}
    for node in module.graph:
        before = [depth.get(v.producer, 0) for v in node.inputs if v is not None and v.producer]
        depth[node] = max(before, default=0) + 1
    eps = float(ml_dtypes.finfo(dtype.numpy).eps)
    return float(2.0 * eps * max(depth.values(), default=1) ** 0.5)


class RetypedRunner:
    """Runs a result whose inputs or outputs have other float types than the source's.

    Samples are cast to what the result takes, its outputs to what the source gives.
    """

    def __init__(self, runner: Runner, source: Module, result: Module) -> None:
        self.runner = runner
        self.inputs = {str(value.name): value.dtype for value in result.graph.inputs}
        self.outputs = {
            name: value.dtype
            for name, value in zip(source.graph.output_names, source.graph.outputs, strict=True)
        }

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the outputs by name in the types of the source."""
        given = {name: _as(array, self.inputs.get(name)) for name, array in inputs.items()}
        results = self.runner(given)
        return {name: _as(array, self.outputs.get(name)) for name, array in results.items()}


def _as(array: Any, dtype: DType | None) -> Any:
    if dtype is None or not isinstance(array, np.ndarray) or not dtype.is_float:
        return array
    with np.errstate(over="ignore"):
        return array if array.dtype == dtype.numpy else array.astype(dtype.numpy)


def first_beyond(
    source: Module, result: Module, inputs: Mapping[str, Any], dtype: DType
) -> str | None:
    """Returns the first named value of the result that leaves four times its noise, in one line.

    Both run in the numpy evaluator; None when every common value stays within.
    """
    plain = _collect(source, inputs, None)
    noise = NoiseRunner(source, dtype)
    runs = [_collect(source, inputs, noise.disturbing(draw + 1)) for draw in range(_NUM_DRAWS)]
    found: list[str] = []

    def look(value: Value, array: Any) -> None:
        name = value.name
        if found or name not in plain or value.owner is not result.graph:
            return
        expected = plain[name]
        if not isinstance(array, np.ndarray) or array.shape != expected.shape:
            return
        a, b = expected.astype(np.float64), array.astype(np.float64)
        finite = np.isfinite(a)
        if not finite.any():
            return
        moves = [np.abs(run[name].astype(np.float64) - a)[finite] for run in runs if name in run]
        floor = max((float(np.nanmax(m)) for m in moves if m.size), default=0.0)
        allowed = max(4 * floor, 4 * noise.step * float(np.abs(a[finite]).max()))
        far = float(np.abs(b - a)[finite].max())
        if not far <= allowed:
            op = value.producer.op.name if value.producer else "input"
            found.append(f"`%{name}` ({op}) differs by {far:.3g}, its noise allows {allowed:.3g}")

    given = {
        str(v.name): _as(inputs[str(v.name)], v.dtype if isinstance(v.type, TensorType) else None)
        for v in result.graph.inputs
    }
    evaluate(result, given, observe=look)
    return found[0] if found else None


def _collect(module: Module, inputs: Mapping[str, Any], change: Observe | None) -> dict[str, Array]:
    kept: dict[str, Array] = {}

    def keep(value: Value, array: Any) -> Any:
        other = None if change is None else change(value, array)
        used = array if other is None else other
        is_outer = value.owner is module.graph and value.producer is not None
        if value.name and is_outer and isinstance(used, np.ndarray) and used.dtype.kind == "f":
            kept[value.name] = used
        return other

    evaluate(module, inputs, observe=keep)
    return kept
