"""A second look at outputs that left the usual tolerance: noise, or a real error?

Some models lose most digits on their way (sums of large terms that cancel): a rewrite that is right
then moves outputs further than the runtime's own optimizations do. Two questions tell noise from
error, both answered by the numpy evaluator, so that they are asked only of outputs that failed:

- How far is the source in its element type from the source in f64, and how far does f64 move when
  every value is disturbed by half a step of its type? The largest is its noise: a single run in the
  type is one draw of it, and another order of the same sums is another. A runtime may compute less
  than its type holds: ONNX Runtime's sigmoid is right to 1e-8, not to a step of its result, which
  shows where a network gives small probabilities. So what ran the source may be that much off, and
  no more: it could as well be an operator that was read wrongly.
- Do source and result agree in f64, by the usual tolerance? An exact rewrite is exact there,
  whatever the noise, so that a floor of many digits excuses no error.

Overflow is such a loss, too: `x * clip(x + 3, 0, 6) / 6` is Inf from a sixth of the largest float
on, and `hard_swish(x)` is not. Where the source has no finite element and would in f64, a finite
element of the result is compared with the one in f64. What the source has, no overflow excuses.

Constants that the result no longer reads were folded into others and rounded once. In f64 a result
may differ by what moving just those constants by half a step makes of the source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regraft.ir.constants import literal, weight
from regraft.ir.evaluate import Observe, evaluate
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic
from regraft.ir.types import DType, dtype_of
from regraft.passes.check.compare import compare_outputs, distance
from regraft.passes.check.runners import PROBE_ERRORS, unevaluable

_NUM_DRAWS = 2
_AFFINE = (arithmetic.add, arithmetic.sub, arithmetic.mul, arithmetic.div)
_HALF_STEP = float(np.finfo(np.float32).eps) / 2
_OF_RUNTIMES = float(np.finfo(np.float32).eps) / 4
"""What activations between 0 and 1 may be off in a runtime: half of the largest rounding there."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a second look found, at failed outputs that are right in f64.

    Args:
        noise: How far the source is from itself in f64, by output, and how far rounding the folded
            constants moves it.
        restored: The source's outputs with elements that overflow lost on their way.
    """

    noise: Mapping[str, float] = field(default_factory=dict)
    restored: Mapping[str, Any] = field(default_factory=dict)


class SecondLook:
    """Says how much noise excuses, output by output.

    Args:
        source: The source.
        result: What passes made of it; both must have a numpy meaning.
        seed: Seed of random operators and of the moved weights.
    """

    def __init__(self, source: Module, result: Module, seed: int = 0) -> None:
        self.source = source
        self.result = result
        self.seed = seed
        self._folded = _reads(source) - _reads(result)

    def look(
        self, inputs: Mapping[str, Any], expected: Mapping[str, Any], actual: Mapping[str, Any],
        failed: Sequence[str],
    ) -> Seen:  # fmt: skip
        """Returns what excuses failed outputs.

        An output that differs in f64 is not in it: nothing excuses it. So it is where the
        evaluator does not take the sample: the failure then stands.

        Args:
            inputs: The sample.
            expected: Outputs of the source.
            actual: Outputs of the result.
            failed: Names of outputs that left the tolerance.
        """
        try:
            return self._seen(inputs, expected, actual, failed)
        except PROBE_ERRORS:
            return Seen()

    def _seen(
        self, inputs: Mapping[str, Any], expected: Mapping[str, Any], actual: Mapping[str, Any],
        failed: Sequence[str],
    ) -> Seen:  # fmt: skip
        exact = evaluate(self.source, inputs, oracle=True, seed=self.seed)
        new = evaluate(self.result, inputs, oracle=True, seed=self.seed)
        right = _agreeing(exact, new, failed, None)
        folding = dict.fromkeys(exact, 0.0)
        if len(right) < len(failed) and self._folded:
            folding = self._of_folding(inputs, exact)
            right = _agreeing(exact, new, failed, folding)
        if not right:
            return Seen()
        noise = self._of_rounding(inputs, exact)
        return Seen(
            {
                name: max(noise[name], self._of_running(expected[name], exact[name]))
                + folding[name]
                for name in right
            },
            {name: _restored(expected[name], actual[name], exact[name]) for name in right},
        )

    def _of_running(self, expected: Any, exact: Any) -> float:
        return min(distance(expected, exact), _OF_RUNTIMES)

    def _of_rounding(self, inputs: Mapping[str, Any], exact: Mapping[str, Any]) -> dict[str, float]:
        """Returns how far rounding moves outputs: in the source's types, and drawn at random."""
        rounded = evaluate(self.source, inputs, seed=self.seed)
        worst = {name: distance(rounded[name], array) for name, array in exact.items()}
        for draw in range(_NUM_DRAWS):
            rng = np.random.default_rng([self.seed, draw])

            def disturb(value: Value, array: Any, rng: np.random.Generator = rng) -> Any:
                if value.dtype is not DType.F32:
                    return None
                return array * (1 + rng.uniform(-_HALF_STEP, _HALF_STEP, np.shape(array)))

            moved = evaluate(self.source, inputs, oracle=True, seed=self.seed, observe=disturb)
            for name, array in moved.items():
                worst[name] = max(worst[name], distance(array, exact[name]))
        return worst

    def _of_folding(self, inputs: Mapping[str, Any], exact: Mapping[str, Any]) -> dict[str, float]:
        """Returns how far outputs move in f64 when the folded weights move by half a step."""
        worst = dict.fromkeys(exact, 0.0)
        for draw in range(_NUM_DRAWS):
            moved = evaluate(
                self.source, inputs, oracle=True, seed=self.seed, observe=self._moving(draw)
            )
            for name, array in moved.items():
                worst[name] = max(worst[name], distance(exact[name], array))
        return worst

    def _moving(self, draw: int) -> Observe:
        def move(value: Value, array: Any) -> Any:
            node = value.producer
            if node is None or value.dtype is not DType.F32 or _key(node) not in self._folded:
                return None
            # read at every use, and moved the same way at each
            rng = np.random.default_rng([self.seed, draw, *_key(node)])
            return array * (1 + rng.uniform(-_HALF_STEP, _HALF_STEP, np.shape(array)))

        return move


def second_look(source: Module, result: Module, seed: int = 0) -> SecondLook | None:
    """Returns a second look, None where the evaluator has no meaning for an operator."""
    if unevaluable(source) or unevaluable(result):
        return None
    return SecondLook(source, result, seed)


def _agreeing(
    exact: Mapping[str, Any],
    new: Mapping[str, Any],
    wanted: Sequence[str],
    noise: Mapping[str, float] | None,
) -> list[str]:
    """Returns the wanted outputs that are equal in f64."""
    some = {name: exact[name] for name in wanted if name in exact}
    return [diff.name for diff in compare_outputs(some, new, noise=noise) if diff.ok]


def _restored(expected: Any, actual: Any, exact: Any) -> Any:
    """Returns `expected` with its f64 elements where it overflowed and `actual` did not."""
    arrays = expected, actual, exact
    if not all(isinstance(array, np.ndarray) for array in arrays) or not _is_float(expected):
        return expected
    lost = ~np.isfinite(expected) & np.isfinite(actual) & np.isfinite(exact)
    if not lost.any():
        return expected
    with np.errstate(over="ignore"):
        return np.where(lost, exact.astype(expected.dtype), expected)


def _is_float(array: np.ndarray[Any, Any]) -> bool:
    return array.dtype.kind == "f" or dtype_of(array).is_float


def _reads(module: Module) -> set[bytes]:
    return {_key(node) for node in module.graph.walk()} - {b""}


def _key(node: Node) -> bytes:
    """Returns what names a constant that may be folded, b"" for other nodes.

    A literal is named by its content where it is an addend or a factor. Others are no numbers to
    be folded: the power of 2 is a product, and a negative number has no power of 2.0000001.
    """
    if node.op is weight:
        return bytes(node.attrs["name"], "utf-8")
    if node.op is not literal or any(user.op not in _AFFINE for user in node.outputs[0].users):
        return b""
    return np.asarray(node.attrs["value"]).tobytes()
