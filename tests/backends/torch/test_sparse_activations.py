"""Cut activations in PyTorch: the generated module computes what the evaluator does."""

from __future__ import annotations

import numpy as np
import pytest

from regraft.ir.evaluate import evaluate
from regraft.passes.activation_sparsity.sparsify_activations import SparsifyActivations
from tests.passes.activation_sparsity.test_sparsify_activations import context, net, samples

torch = pytest.importorskip("torch", reason="the module is generated for PyTorch")

import regraft  # noqa: E402


@pytest.mark.parametrize(("method", "cut"), [("wina", "rank"), ("chess", "threshold")])
def test_pytorch_computes_the_cuts(method: str, cut: str) -> None:
    module = net()
    SparsifyActivations(method=method, cut=cut).run(module, context())  # type: ignore[arg-type]
    sample = samples(1, seed=5)[0]
    want = evaluate(module, sample)["y"]
    built = regraft.to_torch(module)
    with torch.no_grad():
        got = built(torch.from_numpy(sample["x"]))
    got = got["y"] if isinstance(got, dict) else got
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-5 * np.abs(want).max())
