"""Dynamic axes: names, ranges, expressions, equal names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="captures are compared with PyTorch")

from torch import nn  # noqa: E402
from torch.export import Dim  # noqa: E402

import regraft  # noqa: E402
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


class Masked(nn.Module):
    """Takes a mask over what is kept and what is new; a shorter or longer one is made to fit."""

    def __init__(self, is_kept_last: bool) -> None:
        super().__init__()
        self.is_kept_last = is_kept_last

    def forward(self, mask: Any, x: Any, past: Any) -> Any:
        both = torch.cat([x, past] if self.is_kept_last else [past, x], 1)
        if mask.shape[1] < both.shape[1]:
            mask = nn.functional.pad(mask, (0, both.shape[1] - mask.shape[1]))
        if mask.shape[1] > both.shape[1]:
            mask = mask[:, : both.shape[1]]
        return both * mask.index_select(1, torch.arange(both.shape[1]))


@pytest.mark.parametrize("is_kept_last", [False, True])
@pytest.mark.parametrize("seq", [None, "seq"])
def test_a_size_that_is_always_the_sum_of_others_is_that_sum(
    is_kept_last: bool, seq: str | None, tmp_path: Path
) -> None:
    args = torch.ones(2, 9), torch.randn(2, 4), torch.randn(2, 5)
    dynamic = {"mask": {0: "batch", 1: "total"}, "x": {0: "batch"} | ({1: seq} if seq else {}),
               "past": {0: "batch", 1: "past"}}  # fmt: skip
    module = check_capture(
        Masked(is_kept_last), args, dynamic=dynamic,
        sizes=({}, {"batch": 1, "past": 3, "seq": 1}), folder=tmp_path,
    ).module  # fmt: skip
    wanted = "past + seq" if seq else "past + 4"
    assert str(module.input_types["mask"]) == f"f32[batch, {wanted}]"
    assert set(module.symbols) == {"batch", "past", *filter(None, [seq])}
    result = regraft.convert(
        Masked(is_kept_last), tmp_path / "made", args=args, dynamic_shapes=dynamic, target="onnx"
    )
    assert result.check.verified == "module"


class MaskedBeside(Masked):
    """Has another argument, of whose length nothing is known but its name."""

    def forward(self, mask: Any, x: Any, past: Any, other: Any) -> Any:
        return super().forward(mask, x, past), 2 * other


def test_axes_of_the_name_of_a_sum_are_that_sum() -> None:
    args = torch.ones(2, 9), torch.randn(2, 4), torch.randn(2, 5), torch.randn(9)
    dynamic = {"mask": {1: "total"}, "x": {1: "seq"}, "past": {1: "past"}, "other": {0: "total"}}
    module = capture(MaskedBeside(is_kept_last=False), args, dynamic_shapes=dynamic).module
    assert str(module.input_types["other"]) == "f32[past + seq]"
    assert set(module.symbols) == {"past", "seq"}
