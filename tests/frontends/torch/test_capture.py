"""Captured modules: names, weights, structure of arguments and results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="captures are compared with PyTorch")

from torch import nn  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402

import regraft  # noqa: E402
from regraft.frontends.torch.capture import capture  # noqa: E402
from regraft.frontends.torch.tensors import array_from_tensor  # noqa: E402
from regraft.ir.weights import Role  # noqa: E402
from tests.frontends.torch.oracle import check_capture  # noqa: E402


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.full((4,), 0.5))

    def forward(self, ids: Any) -> Any:
        return self.head(self.embed(ids) * self.scale)


def test_mlp_equals_the_original_for_every_batch(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    found = check_capture(
        net, (torch.randn(3, 4),), dynamic={"input": {0: "batch"}},
        sizes=({}, {"batch": 1}, {"batch": 7}), folder=tmp_path,
    )  # fmt: skip
    assert str(found.module.input_types["input"]) == "f32[batch, 4]"
    assert found.module.graph.output_names == ["output"]


def test_weights_have_their_qualified_names_roles_and_aliases(tmp_path: Path) -> None:
    net = Tied()
    module = check_capture(net, (torch.arange(6).reshape(2, 3),), folder=tmp_path).module
    assert module.weights.aliases == {"head.weight": "embed.weight"} or (
        module.weights.aliases == {"embed.weight": "head.weight"}
    )
    assert module.weights.role("embed.weight") is Role.PARAM
    assert module.weights.role("scale") is Role.BUFFER


class Spectral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.modes = nn.Parameter(torch.randn(3, 4, dtype=torch.complex64))

    def forward(self, x: Any) -> Any:
        spectrum = torch.fft.rfft(x, dim=1)[:, :3]
        return torch.fft.irfft(spectrum * self.modes, n=x.shape[1], dim=1)


def test_complex_parameters_are_pairs_that_train(tmp_path: Path) -> None:
    net = Spectral()
    found = check_capture(
        net, (torch.randn(2, 8, 4),), dynamic={"x": {0: "batch"}}, sizes=({}, {"batch": 3}),
        folder=tmp_path,
    )  # fmt: skip
    assert found.module.weights.role("modes") is Role.PARAM
    made = regraft.to_torch(found.module)
    x = torch.randn(2, 8, 4)
    for each in (net, made):
        each(x).square().sum().backward()
    assert torch.allclose(made.modes.grad, torch.view_as_real(net.modes.grad), rtol=1e-4)


def test_weights_share_memory_with_the_parameters() -> None:
    net = nn.Linear(4, 4)
    module = capture(net, (torch.randn(2, 4),)).module
    with torch.no_grad():
        net.weight.fill_(7.0)
    assert (module.weights["weight"].numpy() == 7.0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float16, torch.bool])
def test_element_types_keep_their_bits(dtype: Any) -> None:
    tensor = torch.tensor([1.0, -2.0, 0.5, 0.0]).to(dtype)
    array = array_from_tensor(tensor)
    assert array.astype(np.float32).tolist() == tensor.float().tolist()


def test_weights_that_are_not_contiguous_are_copied_in_order(tmp_path: Path) -> None:
    net = nn.Linear(4, 6, bias=False)
    net.weight = nn.Parameter(torch.randn(4, 6).t())
    check_capture(net, (torch.randn(2, 4),), folder=tmp_path)


class Nested(nn.Module):
    def forward(self, x: Any, pair: Any, *, options: Any = None, flag: bool = False) -> Any:
        y = x + pair[0] - pair[1]["z"]
        return {"first": y, "rest": (y * 2, None, 3), "again": y, "input": x}


def test_names_are_the_paths_of_arguments_and_results(tmp_path: Path) -> None:
    a, b, c = torch.randn(3, 2, 3).unbind()
    found = check_capture(Nested(), (a, (b, {"z": c})), {"flag": True}, folder=tmp_path)
    assert list(found.module.input_types) == ["x", "pair.0", "pair.1.z"]
    assert found.module.graph.output_names == ["first", "rest.0", "again", "input"]


@dataclass
class Result:
    hidden: Any
    pooled: Any


pytree.register_dataclass(Result, serialized_type_name="tests.frontends.torch.Result")


class Fields(nn.Module):
    def forward(self, x: Any) -> Result:
        return Result(x * 2, x.mean(1))


def test_results_of_data_classes_have_the_names_of_the_fields(tmp_path: Path) -> None:
    found = check_capture(Fields(), (torch.randn(2, 3),), folder=tmp_path)
    assert found.module.graph.output_names == ["hidden", "pooled"]


class Parts(NamedTuple):
    low: Any
    high: Any


class Named(nn.Module):
    def forward(self, x: Any) -> Any:
        return Parts(x.amin(), Parts(x.amax(), (x, {"x": x + 1})))


def test_results_that_are_named_tuples_have_the_names_of_the_fields(tmp_path: Path) -> None:
    found = check_capture(Named(), (torch.randn(2, 3),), folder=tmp_path)
    assert found.module.graph.output_names == ["low", "high.low", "high.high.0", "high.high.1.x"]
    low, (high, _) = regraft.to_torch(found.module)(torch.ones(2, 3))
    assert (low, high) == (1, 1)


class Same(nn.Module):
    def forward(self, x: Any) -> Any:
        return {"x": x + 1}


def test_an_output_never_has_the_name_of_an_input() -> None:
    module = capture(Same(), (torch.randn(2),)).module
    assert module.graph.output_names == ["x.out"]


def test_nodes_say_which_module_and_line_they_come_from() -> None:
    net = nn.Sequential(nn.Linear(4, 4), Same())
    module = capture(net, (torch.randn(2, 4),)).module
    add = module.graph.last
    assert add is not None
    assert add.loc[0] == "torch:1"
    assert add.loc[1].partition(":")[0].endswith("test_capture.py")


def test_training_mode_is_restored() -> None:
    net = nn.Sequential(nn.Dropout(), nn.Linear(2, 2))
    net[1].eval()
    capture(net, (torch.randn(2, 2),))
    assert (net.training, net[0].training, net[1].training) == (True, True, False)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # PyTorch's own
def test_fx_graph_modules_and_exported_programs_are_captured(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU()).eval()
    x = torch.randn(2, 3)
    check_capture(torch.fx.symbolic_trace(net), (x,), folder=tmp_path)
    program = torch.export.export(net, (x,), strict=False)
    for source in (program, program.run_decompositions()):
        found = capture(source)
        assert found.module.weights.role("0.weight") is Role.PARAM
        expected = found.runner(True)({"input": x.numpy()})
        from regraft.ir.evaluate import evaluate

        result = evaluate(found.module, {"input": x.numpy()})
        assert np.allclose(result["output"], expected["output"], rtol=1e-6, atol=1e-6)


class Sevenths(nn.Module):
    """Takes multiples of a seventh of a table's rows, which no generated sample guesses."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(15, 3)

    def forward(self, x: Any) -> Any:
        return self.table(x * 7)


def test_inputs_that_cannot_be_guessed_are_those_of_the_capture(tmp_path: Path) -> None:
    given = torch.tensor([[0, 2, 1]])
    found = regraft.convert(Sevenths(), tmp_path / "out", args=(given,), target="torch")
    assert found.check.verified == "module"
    assert found.check.num_samples == 1
    # a size that the example does not have
    net, axes = Sevenths(), {"x": {1: "length"}}
    asked = regraft.convert(net, tmp_path / "sized", args=(given,), dynamic_shapes=axes,
                            target="torch", dims={"length": 5})  # fmt: skip
    assert asked.check.verified.startswith("no (")
