"""What convolutions are brought to before they are rounded, and what the rounding answers to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.ops import activation, conv
from regraft.ir.text import parse_module
from regraft.passes.protocol import Context
from regraft.passes.quantization.channel_ranges import level_channels
from regraft.passes.quantization.convolution_moments import Patches
from regraft.passes.quantization.convolutions import quantize_convolutions
from regraft.passes.quantization.encoding import round_to, searched_grid
from regraft.passes.quantization.formats import INT8
from regraft.passes.quantization.grouped_codes import grouped_codes

WIDE, SIDE = 32, 12

NET = f"""
module "net"
weight @a : f32[{WIDE}, 16, 1, 1] = random(1)
weight @d : f32[{WIDE}, 1, 3, 3] = random(2)
weight @b : f32[16, {WIDE}, 1, 1] = random(3)

graph(%x : f32[1, 16, {SIDE}, {SIDE}]) {{
  %a = weight @a
  %d = weight @d
  %b = weight @b
  %s = conv(%x, %a) {{pads = [0, 0, 0, 0], strides = [1, 1], dilations = [1, 1]}}
  %r = clip(%s) {{min = 0.0, max = 6.0}}
  %t = conv(%r, %d) {{pads = [1, 1, 1, 1], strides = [2, 2], dilations = [1, 1], groups = {WIDE}}}
  %u = relu(%t)
  %y = conv(%u, %b) {{pads = [0, 0, 0, 0], strides = [1, 1], dilations = [1, 1]}}
  return %y
}}
"""


def samples(count: int = 4) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    shape = (1, 16, SIDE, SIDE)
    # channels of very different size; what they sum to stays below the clip
    sizes = np.geomspace(1e-3, 0.3, 16).reshape(1, -1, 1, 1)
    return [{"x": (rng.standard_normal(shape) * sizes).astype(np.float32)} for _ in range(count)]


def tops_of(module: Module) -> dict[Any, Any]:
    values = [node.output for node in module.graph if node.op in (activation.clip, activation.relu)]
    found: dict[Any, Any] = {}
    for item in OrtActivations().activations(module, values, samples()):
        for value, array in item.items():
            found[value] = np.maximum(found.get(value, 0.0), np.abs(array).max((0, 2, 3)))
    return found


def test_channels_come_to_one_range_and_results_stay() -> None:
    module, reference = parse_module(NET), parse_module(NET)
    before = tops_of(module)
    readers = [node.inputs[0] for node in module.graph if node.op is conv.conv]
    assert level_channels(module, [x for x in readers if x is not None], before) == 2
    after = tops_of(module)
    for old, new in zip(before.values(), after.values(), strict=True):
        held = old > 0
        # by the power of 0.7 what was apart by a factor f is apart by f ** 0.3
        assert np.ptp(np.log(new[held])) < 0.35 * np.ptp(np.log(old[held]))
        assert new.max() <= old.max() * (1 + 1e-5)
    assert sum(node.op is activation.clip for node in module.graph) == 1  # with the bounds it had
    for sample in samples():
        want, got = (evaluate(each, sample)["y"] for each in (reference, module))
        # two factors, rounded to f32 each, and sums of 32
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_a_clip_that_cuts_larger_values_keeps_its_row_as_it_is() -> None:
    module = parse_module(NET.replace("max = 6.0", "max = 0.001"))
    clipped = next(node.output for node in module.graph if node.op is activation.clip)
    tops = {clipped: np.geomspace(1e-4, 1.0, WIDE)}
    assert level_channels(module, [clipped], tops) == 0


def test_depthwise_codes_answer_to_what_the_taps_share() -> None:
    rng = np.random.default_rng(0)
    groups, taps = 24, 9
    # neighbouring pixels are nearly equal: an error of the sum of the taps counts a hundredfold
    rows = rng.standard_normal((groups, 400, 1)) + 0.1 * rng.standard_normal((groups, 400, taps))
    moments = rows.transpose(0, 2, 1) @ rows
    matrix = rng.standard_normal((taps, groups)).astype(np.float32)
    grid = searched_grid(matrix, INT8, taps)

    def loss(codes: Any) -> float:
        lost = (matrix - codes.decode()).T
        return float(np.einsum("gk,gkl,gl->", lost, moments, lost))

    assert loss(grouped_codes(matrix, grid, moments)) < 0.25 * loss(round_to(matrix, grid))


def test_moments_are_those_of_the_patches() -> None:
    module = parse_module(NET)
    node = [node for node in module.graph if node.op is conv.conv][1]
    x = node.inputs[0]
    assert x is not None
    patches = Patches([node], 1)
    seen = np.ones((1, WIDE, SIDE, SIDE), np.float32)
    seen[:, 3] = np.arange(SIDE)  # grows along the rows; every other column is read, as strides say
    patches.update({x: seen})
    moments = patches.moments()[node]
    assert moments.shape == (WIDE, 9, 9)
    # of the middle column no tap is ever padded: its taps are equal, and vary as one
    middle = moments[3][1::3, 1::3]
    rows = moments[3][4, 4]
    np.testing.assert_allclose(middle[1, 1], rows)
    assert rows > 100 * abs(moments[0][4, 4])  # what never changes has no moment about its mean


@dataclass(frozen=True)
class Clock:
    """Says how long the module after takes, against the one before."""

    found: float

    def ratio(self, before: Module, after: Module) -> float:
        return self.found


DENSE = """
module "dense"
weight @a : f32[64, 64, 3, 3] = random(1)
weight @b : f32[64, 64, 3, 3] = random(2)

graph(%x : f32[1, 64, 24, 24]) {
  %a = weight @a
  %b = weight @b
  %s = conv(%x, %a) {pads = [1, 1, 1, 1], strides = [1, 1], dilations = [1, 1]}
  %r = relu(%s)
  %y = conv(%r, %b) {pads = [1, 1, 1, 1], strides = [1, 1], dilations = [1, 1]}
  return %y
}
"""


def test_what_is_measured_to_be_slower_is_taken_back() -> None:
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 64, 24, 24)).astype(np.float32)} for _ in range(2)]

    def run(found: float) -> tuple[Module, Any]:
        module = parse_module(DENSE)
        ctx = Context(samples=feeds, activations=OrtActivations(), latency=Clock(found))
        return module, quantize_convolutions(module, ctx, INT8, "minmax", lambda name: False)

    _, report = run(0.5)
    assert (report.num_int8, report.speed) == (2, 2.0)
    module, report = run(1.25)
    assert (report.num_int8, report.num_float, report.share) == (0, 2, 0.0)
    assert report.skipped[-1].reason == "2 in 8 bits were measured to run at 0.80x of float"
    want, got = (evaluate(each, feeds[0])["y"] for each in (parse_module(DENSE), module))
    np.testing.assert_array_equal(got, want)
