"""Measured losses: the report says where the samples hardly move the source's outputs."""

import numpy as np
import pytest

from regraft.passes.check.module_check import check_module
from regraft.passes.check.samples import Sample
from regraft.passes.protocol import Contract, Exact, Lossy


def _note(offset: float, contract: Contract, count: int = 3) -> str:
    rng = np.random.default_rng(0)
    samples = [
        Sample({"x": rng.standard_normal((2, 4)).astype(np.float32)}, {}, "given")
        for _ in range(count)
    ]

    def source(inputs):  # type: ignore[no-untyped-def]
        return {"y": inputs["x"] + np.float32(offset)}

    def result(inputs):  # type: ignore[no-untyped-def]
        return {"y": source(inputs)["y"] * np.float32(1.01)}

    is_lossy = isinstance(contract, Lossy)
    made = result if is_lossy else source
    return check_module(source, None, made, samples, contract=contract).note


def test_outputs_that_hardly_vary_are_called_so() -> None:
    note = _note(1e5, Lossy("output"))
    assert "says little about quality" in note
    assert "`y`" in note
    assert "--inputs" in note


@pytest.mark.parametrize(
    ("offset", "contract", "count"),
    [(0.0, Lossy("output"), 3), (1e5, Exact(), 3), (1e5, Lossy("output"), 1)],
)
def test_nothing_is_said_otherwise(offset: float, contract: Contract, count: int) -> None:
    assert _note(offset, contract, count) == ""
