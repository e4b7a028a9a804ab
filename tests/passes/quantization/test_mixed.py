"""Mixed precision: targets are met as measured, rows keep their order, and reports add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.errors import TargetError, UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.text import parse_module
from regraft.passes.calibration.statistics import gather_statistics
from regraft.passes.protocol import Context, PassResult
from regraft.passes.quantization.quantize_mixed import QuantizeMixed
from regraft.passes.quantization.row_gains import row_gains
from regraft.passes.quantization.sites import linears

WIDTH, DEPTH = 64, 4
_INPUTS = 5e-5
"""Mean square of rounding the inputs of 4 layers to 8 bits by block, relative."""


def net() -> str:
    weights = "".join(
        f"weight @w{i} : f32[{WIDTH}, {WIDTH}] = random({i + 1})\n" for i in range(DEPTH)
    )
    body = ["  %h0 = weight @w0", "  %a0 = matmul(%x, %h0)"]
    for i in range(1, DEPTH):
        body += [f"  %r{i} = relu(%a{i - 1})", f"  %h{i} = weight @w{i}",
                 f"  %a{i} = matmul(%r{i}, %h{i})"]  # fmt: skip
    text = "\n".join(body)
    return (
        f'module "net"\nsymbol B\n{weights}graph(%x : f32[B, {WIDTH}]) {{\n{text}\n'
        f"  return %a{DEPTH - 1}\n}}\n"
    )


def samples() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((32, WIDTH)).astype(np.float32)} for _ in range(4)]


def run(**options: Any) -> tuple[Module, PassResult]:
    module = parse_module(net())
    ctx = Context(samples=samples(), activations=OrtActivations())
    return module, QuantizeMixed(**options).run(module, ctx)


def relative_error(module: Module) -> float:
    reference = parse_module(net())
    lost = whole = 0.0
    for sample in samples():
        want, got = (next(iter(evaluate(m, sample).values())) for m in (reference, module))
        lost += float(np.square(got - want).sum())
        whole += float(np.square(want).sum())
    return lost / whole


@pytest.mark.parametrize("rows", [False, True])
def test_average_bits_are_met_and_more_bits_lose_less(rows: bool) -> None:
    drops = []
    for bits in (4.0, 5.0, 6.0, 8.0):
        module, result = run(target=f"bits:{bits}", rows=rows, method="search")
        assert result.stats["average-bits"] <= bits + 1e-9
        assert result.stats["average-bits"] > bits - 1.01
        # ONNX Runtime's kernel rounds inputs to 8 bits by block as well, unlike the evaluator
        assert result.stats["drop"] == pytest.approx(relative_error(module), rel=0.05, abs=_INPUTS)
        drops.append(result.stats["drop"])
    assert drops == sorted(drops, reverse=True)
    assert drops[-1] < 0.01 * drops[0] + _INPUTS  # 16 times finer: 256 times less in square


def test_rows_of_a_layer_are_joined_in_their_order() -> None:
    module, result = run(target="bits:4.5", rows=True, method="gptq")
    assert result.stats["in-both"] >= 1
    assert relative_error(module) < 0.02


def test_drop_is_met_with_fewer_bits_than_8() -> None:
    _, all_low = run(target="bits:4", method="search")
    asked = float(all_low.stats["drop"]) / 2
    module, result = run(target=f"drop:{asked}", method="search")
    assert relative_error(module) <= asked
    assert 4 < result.stats["average-bits"] < 8
    assert result.targets[0].met


def test_a_drop_that_nothing_meets_is_refused() -> None:
    with pytest.raises(TargetError, match="8 bits everywhere"):
        run(target="drop:1e-9", method="search")
    with pytest.raises(TargetError):
        run(target="bytes:10", method="search")


def test_measurements_are_kept_for_other_targets(tmp_path: Path) -> None:
    file = tmp_path / "curves"
    _, first = run(target="bits:5", method="search", curves=str(file))
    size = file.stat().st_size
    _, again = run(target="bits:6", method="search", curves=str(file))
    assert file.stat().st_size == size
    assert again.stats["drop"] < first.stats["drop"]


def test_every_layer_is_reported_with_the_cost_of_keeping_it() -> None:
    _, result = run(target="bytes:14000", method="search")
    assert len(result.layers) == DEPTH
    assert result.stats["bytes"] == sum(layer.num_bytes for layer in result.layers) <= 14000
    errors = [layer.error for layer in result.layers]
    assert errors == sorted(errors, reverse=True)
    assert all(layer.bytes_to_keep > 0 for layer in result.layers)


@pytest.mark.parametrize("target", ["bits", "bits:x", "size:3", "drop:-1"])
def test_bad_targets_are_refused(target: str) -> None:
    with pytest.raises(UsageError, match="no target"):
        run(target=target)


def test_outputs_that_are_switched_off_count_for_nothing() -> None:
    text = net().replace("matmul(%x, %h0)", "matmul(%x, %h0)\n  %bias = weight @bias\n"
                         "  %s0 = add(%a0, %bias)").replace("relu(%a0)", "relu(%s0)")  # fmt: skip
    numbers = ", ".join(["-1e3"] * (WIDTH // 2) + ["0"] * (WIDTH // 2))
    text = text.replace("graph(", f"weight @bias : f32[{WIDTH}] = [{numbers}]\ngraph(", 1)
    module = parse_module(text)
    sites = list(linears(module.graph))
    inputs = [site.x for site in sites]
    ctx = Context(samples=samples(), activations=OrtActivations())
    found = gather_statistics(module, inputs, ctx, inputs)
    readers = {site.x: [site] for site in sites}
    gains = row_gains(sites[0], readers, found)
    assert np.abs(gains[: WIDTH // 2]).max() < 1e-6
    assert gains[WIDTH // 2 :].min() > 0.1
    np.testing.assert_array_equal(row_gains(sites[-1], readers, found), np.ones(WIDTH))
