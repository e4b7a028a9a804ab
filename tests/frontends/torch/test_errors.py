"""What a user reads when a module cannot be captured: the line, the reason, what to do."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="captures are compared with PyTorch")

from torch import nn  # noqa: E402
from torch.export import Dim  # noqa: E402

import regraft  # noqa: E402
from regraft.frontends.torch.call import CallImport, row  # noqa: E402
from regraft.frontends.torch.capture import capture  # noqa: E402
from regraft.ir.errors import (  # noqa: E402
    CheckError,
    InputError,
    UnsupportedError,
    UsageError,
)
from regraft.ir.ops.arithmetic import add  # noqa: E402


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.ERROR)  # PyTorch prints the graph of a failed export
    yield
    logging.disable(logging.NOTSET)


class Decides(nn.Module):
    def forward(self, x: Any) -> Any:
        if x.sum() > 0:
            return x + 1
        return x


class Fixed(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.view(4, -1)


class Plain(nn.Module):
    def forward(self, x: Any, y: Any = None) -> Any:
        return x + 1 if y is None else x + y


def test_control_flow_on_data_names_the_line_and_the_way_out() -> None:
    with pytest.raises(InputError) as caught:
        capture(Decides(), (torch.randn(3),))
    assert "decides by the content of a tensor" in caught.value.message
    assert "test_errors.py" in caught.value.message
    assert "`if x.sum() > 0:`" in caught.value.message
    assert "torch.where" in str(caught.value.hint)


@pytest.mark.parametrize("wanted", [Dim("rows"), "rows", Dim.DYNAMIC])
def test_a_dynamic_axis_that_the_code_fixes_is_an_error(wanted: Any) -> None:
    with pytest.raises(InputError, match=r"constant \(4\)"):
        capture(Fixed(), (torch.randn(4, 3),), dynamic_shapes={"x": {0: wanted}})


@pytest.mark.parametrize("wanted", [Dim("rows"), "rows", Dim.DYNAMIC])
def test_a_dynamic_axis_of_size_one_in_the_example_is_an_error(wanted: Any) -> None:
    with pytest.raises(InputError, match=r"axis 0 of `x`.* has 1") as caught:
        capture(Plain(), (torch.randn(1, 3),), dynamic_shapes={"x": {0: wanted}})
    assert "2 or more" in str(caught.value.hint)


def test_an_example_outside_the_range_of_its_axis_is_an_error() -> None:
    few = {"x": {0: Dim("rows", min=5, max=8)}}
    with pytest.raises(InputError, match=r"\(`rows`\) has 4, its range is 5 to 8"):
        capture(Plain(), (torch.randn(4, 3),), dynamic_shapes=few)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"z": {0: "rows"}}, "no argument `z`, only x"),
        ({"x": {5: "rows"}}, "out of range"),
        (({0: "a"}, {0: "b"}), "does not fit"),
    ],
)
def test_dynamic_shapes_that_do_not_fit_are_a_usage_error(shapes: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        capture(Plain(), (torch.randn(3, 3),), dynamic_shapes=shapes)


def test_missing_arguments_are_an_error() -> None:
    with pytest.raises(InputError, match="missing a required argument"):
        capture(Plain())


def test_meta_tensors_are_an_error_that_names_one() -> None:
    with pytest.raises(InputError, match="`weight` is a tensor without data"):
        capture(nn.Linear(2, 2, device="meta"), (torch.randn(2, 2, device="meta"),))


@torch.library.custom_op("regraft_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@torch.library.custom_op("regraft_tests::thrice", mutates_args=())
def thrice(x: torch.Tensor) -> torch.Tensor:
    return x * 3


@torch.library.custom_op("regraft_tests::halve", mutates_args=())
def halve(x: torch.Tensor) -> torch.Tensor:
    return x / 2


twice.register_fake(torch.empty_like)
halve.register_fake(torch.empty_like)


class Custom(nn.Module):
    def forward(self, x: Any) -> Any:
        y = torch.ops.regraft_tests.twice(x)
        return torch.ops.regraft_tests.twice(y) + torch.ops.regraft_tests.halve(x)


class NoShapes(nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.ops.regraft_tests.thrice(x)


def test_all_calls_without_an_ir_form_are_listed_with_counts_and_lines() -> None:
    with pytest.raises(UnsupportedError) as caught:
        capture(Custom(), (torch.randn(3),))
    text = caught.value.message
    assert "3 calls of 2 kinds" in text
    assert "`regraft_tests.twice.default` x 2: no importer at" in text
    assert "`regraft_tests.halve.default` x 1" in text
    assert "test_errors.py" in text
    assert "torch_importers" in str(caught.value.hint)


def test_an_importer_of_a_plugin_takes_a_custom_operator() -> None:
    def both(c: CallImport) -> Any:
        return c.b.op(add, c.value("x"), c.value("x"))

    class Net(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.ops.regraft_tests.twice(x)

    module = capture(
        Net(), (torch.randn(3),), importers=(row(both, "regraft_tests.twice.default"),)
    ).module
    assert [node.op for node in module.graph] == [add]


def test_an_importer_that_exists_is_not_replaced() -> None:
    with pytest.raises(UsageError, match="two importers"):
        capture(
            Plain(),
            (torch.randn(3),),
            importers=(row(lambda c: c.value("self"), "aten.add.Tensor"),),
        )


def test_a_custom_operator_without_shapes_says_what_to_register() -> None:
    with pytest.raises(UnsupportedError, match="thrice") as caught:
        capture(NoShapes(), (torch.randn(3),))
    assert "register_fake" in str(caught.value.hint)


def test_programs_take_no_arguments_and_scripts_are_refused() -> None:
    program = torch.export.export(Plain(), (torch.randn(3),), strict=False)
    with pytest.raises(UsageError, match="takes no example arguments"):
        capture(program, (torch.randn(3),))


class PartlyLoaded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loaded = nn.Parameter(torch.randn(3, 3))
        self.missing = nn.Parameter(torch.empty(3, 3, device="meta"))
        self.register_buffer("also", torch.empty(3, device="meta"))

    def forward(self, x: Any) -> Any:
        return x @ self.loaded @ self.missing + self.also


def test_meta_tensors_next_to_others_are_named() -> None:
    with pytest.raises(InputError, match=r"`missing` is a tensor without data .* and 1 more"):
        capture(PartlyLoaded(), (torch.randn(2, 3),))
    with pytest.raises(InputError, match="an example argument is a tensor without data"):
        capture(nn.Linear(3, 3), (torch.randn(2, 3, device="meta"),))


class Loss(nn.Module):
    def forward(self, x: Any) -> Any:
        return nn.functional.gaussian_nll_loss(x, x, x)


def test_control_flow_inside_of_pytorch_names_both_lines() -> None:
    with pytest.raises(InputError) as caught:
        capture(Loss(), (torch.rand(3),))
    assert "test_errors.py" in caught.value.message
    assert "`if torch.any(var < 0)" in caught.value.message.replace("elif", "if")
    with pytest.raises(InputError, match=r"functional\.py:\d+: `(el)?if torch\.any"):
        capture(nn.GaussianNLLLoss(), (torch.rand(3),) * 3)


def test_a_runtime_without_a_kernel_of_the_type_says_so(tmp_path: Any) -> None:
    net = nn.Conv1d(2, 3, 3).double().eval()
    with pytest.raises(CheckError, match="has no CPU kernel for `Conv`") as caught:
        regraft.convert(net, tmp_path / "out", args=(torch.randn(1, 2, 8).double(),))
    assert "module.float()" in str(caught.value.hint)
