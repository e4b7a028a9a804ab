"""Values inside a module come from the first runtime that takes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from regraft import apply
from regraft.activations import Activations, EvaluatedActivations
from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.errors import UnsupportedError
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.passes.protocol import Samples
from tests.passes.analysis.spelled import spelled

HALVES = {"bf16": ml_dtypes.bfloat16, "f16": np.float16}


def _net(dtype: str) -> Module:
    return spelled(
        "%h = matmul(%x, %up)\n%g = gelu(%h)\n%m = div(%g, 2)\n%y = matmul(%m, %down)",
        dtype=dtype,
        weights={"up": f"{dtype}[16, 64]", "down": f"{dtype}[64, 16]"},
    )


def _samples(kind: Any) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((2, 5, 16)).astype(kind)} for _ in range(3)]


def _values(module: Module) -> list[Value]:
    return [node.output for node in module.graph if node.op.name in ("gelu", "div")]


def test_what_onnx_runtime_refuses_is_run_all_the_same() -> None:
    module = spelled("%h = add(%x, %up)\n%y = mul(%h, %h)", dtype="i16", weights={"up": "i16[16]"})
    values = [node.output for node in module.graph if node.op.name in ("add", "mul")]
    samples = [
        {"x": np.arange(number, number + 32, dtype=np.int16).reshape(1, 2, 16)}
        for number in range(3)
    ]
    with pytest.raises(UnsupportedError):
        next(iter(OrtActivations().activations(module, values, samples)))
    found = list(Activations().activations(module, values, samples))
    expected = list(EvaluatedActivations().activations(module, values, samples))
    assert len(found) == len(expected) == 3
    for one, other in zip(found, expected, strict=True):
        for value in values:
            assert one[value].dtype == np.int16
            np.testing.assert_array_equal(one[value], other[value])


def test_bf16_is_run_in_f32() -> None:
    module, samples = _net("bf16"), _samples(ml_dtypes.bfloat16)
    values = _values(module)
    found = list(Activations().activations(module, values, samples))
    expected = list(EvaluatedActivations().activations(module, values, samples))
    assert len(found) == len(expected) == 3
    for one, other in zip(found, expected, strict=True):
        for value in values:
            assert one[value].dtype == np.float32
            a, b = one[value].astype(np.float64), other[value].astype(np.float64)
            # the evaluator rounds every result: 16 sums of such
            np.testing.assert_allclose(a, b, atol=2**-7 * np.abs(b).max())


class _Refusing:
    """A source that stops at a sample."""

    def __init__(self, at: int) -> None:
        self.at = at

    def activations(
        self, module: Module, values: Sequence[Value], samples: Samples
    ) -> Iterator[dict[Value, Any]]:
        for number, _ in enumerate(samples):
            if number == self.at:
                raise UnsupportedError(f"refused at {number}")
            yield {}


def test_without_a_runtime_the_first_refusal_is_given_and_the_others_noted() -> None:
    sources = Activations([lambda: _Refusing(0), lambda: _Refusing(0)])
    with pytest.raises(UnsupportedError, match="refused at 0") as caught:
        list(sources.activations(_net("f32"), [], _samples(np.float32)))
    assert caught.value.__notes__ == ["nor does another runtime: refused at 0"]


def test_a_refusal_of_a_later_sample_is_none_of_the_module() -> None:
    sources = Activations([lambda: _Refusing(1), EvaluatedActivations])
    with pytest.raises(UnsupportedError, match="refused at 1"):
        list(sources.activations(_net("f32"), [], _samples(np.float32)))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("options", ["", ",criterion=activation", ",repair=none"])
def test_half_precision_is_pruned_on_samples(dtype: str, options: str) -> None:
    module = _net(dtype)
    prune = f"canonicalize,prune{{target=flops:0.5{options}}}"
    records = apply(module, prune, samples=_samples(HALVES[dtype]))
    assert records[-1].stats["achieved"] == pytest.approx(0.5, abs=0.01)
    assert {str(value.dtype) for value in _values(module)} == {dtype}
