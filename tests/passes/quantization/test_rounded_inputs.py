"""Statistics of rounded inputs come from one run of every part of the graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.weights import ArrayWeight
from regraft.passes.calibration.statistics import gather_statistics
from regraft.passes.protocol import Context, Samples
from regraft.passes.quantization import quantize
from regraft.passes.quantization.quantize import Quantize
from regraft.passes.quantization.rounded_inputs import FloatInputs, InputsInOrder
from regraft.passes.quantization.sites import linears
from tests.passes.analysis.spelled import spelled


def _deep(num_layers: int) -> Module:
    """Returns residual blocks, beside a gate that all of them read."""
    lines = ["%gate = sigmoid(%x)", "%h0 = tanh(%x)"]
    for i in range(num_layers):
        lines += [
            f"%a{i} = matmul(%h{i}, %up{i})", f"%r{i} = relu(%a{i})",
            f"%b{i} = matmul(%r{i}, %down{i})", f"%g{i} = mul(%b{i}, %gate)",
            f"%s{i} = mul(%g{i}, 0.1)", f"%h{i + 1} = add(%h{i}, %s{i})",
        ]  # fmt: skip
    weights = {f"up{i}": "f32[16, 32]" for i in range(num_layers)}
    weights |= {f"down{i}": "f32[32, 16]" for i in range(num_layers)}
    return spelled("\n".join([*lines, f"%y = tanh(%h{num_layers})"]), weights=weights)


class _Counted:
    """ONNX Runtime, and how many products it ran."""

    def __init__(self) -> None:
        self.num_products = 0

    def activations(
        self, module: Module, values: Sequence[Value], samples: Samples
    ) -> Iterator[dict[Value, Any]]:
        self.num_products += sum(node.op.name == "matmul" for node in module.graph)
        return OrtActivations().activations(module, values, samples)


def _context(source: _Counted) -> Context:
    rng = np.random.default_rng(0)
    samples = [{"x": rng.standard_normal((2, 5, 16)).astype(np.float32)} for _ in range(3)]
    return Context(samples=samples, activations=source)


@pytest.mark.parametrize("num_layers", [4, 8])
def test_every_product_runs_once_in_float_and_once_rounded(num_layers: int) -> None:
    source = _Counted()
    Quantize(weights="int4", method="gptq").run(_deep(num_layers), _context(source))
    # all in float; then each part, whose last product feeds no statistics
    assert source.num_products <= 2 * 2 * num_layers


def test_statistics_are_those_of_the_whole_module(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Compared(InputsInOrder):
        def statistics(self, readers: Any) -> Any:
            found = super().statistics(readers)
            now = {x: site.node.inputs[0] for x, site in readers.items()}
            ctx = _context(_Counted())
            whole = gather_statistics(self._module, list(now.values()), ctx, list(now.values()))
            for x, value in now.items():
                # sums of 30 products of f32, by sessions that fuse differently
                for name in ("moments", "high"):
                    one, other = getattr(found[x], name), getattr(whole[value], name)
                    np.testing.assert_allclose(one, other, atol=1e-3 * np.abs(other).max())
                seen.append(x)
            return found

    monkeypatch.setattr(quantize, "InputsInOrder", Compared)
    Quantize(weights="int4", method="gptq").run(_deep(4), _context(_Counted()))
    assert len(seen) == 8


def test_float_statistics_stay_those_of_the_module_before() -> None:
    module, source = _deep(4), _Counted()
    ctx = _context(source)
    sites = list(linears(module.graph))
    whole = gather_statistics(module, [site.x for site in sites], ctx)
    source.num_products = 0
    before = FloatInputs(module, ctx)
    for site in sites:
        stats = before.statistics({site.x: site})[site.x]
        assert stats.moments is None
        np.testing.assert_allclose(stats.mean, whole[site.x].mean, atol=1e-5)
        halved = module.weights[site.name].numpy() / 2  # what comes after must not see it
        module.weights.set(site.name, ArrayWeight(halved))
    assert source.num_products <= len(sites)
