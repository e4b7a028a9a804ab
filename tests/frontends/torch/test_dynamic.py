"""Dynamic axes: names, ranges, expressions, equal names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="captures are compared with PyTorch")

from torch import nn  # noqa: E402
from torch.export import Dim  # noqa: E402

from regraft.frontends.torch.capture import capture  # noqa: E402
from regraft.ir.errors import UnsupportedError  # noqa: E402
from tests.frontends.torch.oracle import check_capture  # noqa: E402


class Join(nn.Module):
    def forward(self, x: Any, y: Any) -> Any:
        both = torch.cat([x, y], 1)
        return both.reshape(both.shape[0] * both.shape[1], -1), both[:, : both.shape[1] // 2]


class Keywords(nn.Module):
    def forward(self, x: Any, **more: Any) -> Any:
        return x + more["y"]


def test_names_and_ranges_are_the_users(tmp_path: Path) -> None:
    found = check_capture(
        Join(), (torch.randn(2, 3, 4), torch.randn(2, 5, 4)),
        dynamic={"x": {0: "batch", 1: Dim("left", min=2, max=9)}, "y": {0: "batch", 1: "right"}},
        sizes=({}, {"batch": 3, "left": 4, "right": 6}, {"batch": 1, "left": 2, "right": 2}),
        folder=tmp_path,
    )  # fmt: skip
    symbols = found.module.symbols
    assert set(symbols) == {"batch", "left", "right"}
    assert (symbols["left"].lo, symbols["left"].hi) == (1, 9)
    assert str(found.module.input_types["y"]) == "f32[batch, right, 4]"
    assert not found.module.assumptions


def test_axes_without_a_name_are_named_after_input_and_axis() -> None:
    module = capture(
        Join(), (torch.randn(2, 3, 4), torch.randn(2, 3, 4)),
        dynamic_shapes={"x": {1: Dim.DYNAMIC}, "y": {1: Dim.AUTO}},
    ).module  # fmt: skip
    assert str(module.input_types["x"]) == "f32[2, x_1, 4]"
    assert str(module.input_types["y"]) == "f32[2, y_1, 4]"


def test_arguments_that_only_kwargs_name_are_dynamic_too(tmp_path: Path) -> None:
    found = check_capture(
        Keywords(), (torch.randn(2, 3),), {"y": torch.randn(2, 3)},
        dynamic={"x": {0: "batch"}, "y": {0: "batch"}}, sizes=({"batch": 4},), folder=tmp_path,
    )  # fmt: skip
    assert str(found.module.input_types["y"]) == "f32[batch, 3]"


class Trees(nn.Module):
    def forward(self, pairs: Any) -> Any:
        return [a + b for a, b in pairs]


def test_axes_of_one_tensor_stand_for_those_of_a_tree() -> None:
    pairs = [(torch.randn(2, 3), torch.randn(2, 3)) for _ in range(2)]
    module = capture(Trees(), (pairs,), dynamic_shapes={"pairs": {0: "batch"}}).module
    assert {str(type_) for type_ in module.input_types.values()} == {"f32[batch, 3]"}
    assert list(module.symbols) == ["batch"]


class Scaled(nn.Module):
    def forward(self, x: Any) -> Any:
        up, down = math.ceil(1.5 * x.shape[0]), math.floor(0.5 * x.shape[0])
        return x.new_ones(up) * x.sum(), x.new_ones(down + 1) * x.mean()


def test_sizes_times_fractions_that_floats_hold_exactly_are_integers(tmp_path: Path) -> None:
    check_capture(
        Scaled(), (torch.randn(4, 3),), dynamic={"x": {0: "rows"}},
        sizes=({}, {"rows": 5}, {"rows": 1}, {"rows": 10}), folder=tmp_path,
    )  # fmt: skip


def test_sizes_times_fractions_that_floats_round_are_refused() -> None:
    class Rounded(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.new_ones(math.ceil(0.1 * x.shape[0])) * x.sum()

    with pytest.raises(UnsupportedError, match="CeilToInt"):
        capture(Rounded(), (torch.randn(4, 3),), dynamic_shapes={"x": {0: "rows"}})
