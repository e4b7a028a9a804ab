"""One tensor given for two arguments stays two inputs."""

from __future__ import annotations

import numpy as np
import pytest

import regraft
from regraft.ir.evaluate import evaluate

torch = pytest.importorskip("torch", reason="capture needs PyTorch")


class _Weighted(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return a * 2 + b * 3 + c


def test_one_tensor_for_two_arguments_is_two_inputs() -> None:
    x = torch.ones(2, 3)
    module = regraft.capture(_Weighted(), (x, x), {"c": x})
    assert list(module.input_types) == ["a", "b", "c"]
    inputs = {name: np.full((2, 3), k, np.float32) for name, k in (("a", 1), ("b", 10), ("c", 100))}
    (result,) = evaluate(module, inputs).values()
    np.testing.assert_array_equal(result, np.full((2, 3), 132, np.float32))
