"""Views, in-place calls and written buffers against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="captures are compared with PyTorch")

from torch import nn  # noqa: E402

from regraft.frontends.torch.capture import capture, load_program  # noqa: E402
from regraft.ir.evaluate import evaluate  # noqa: E402
from regraft.ir.module import StateKind  # noqa: E402
from tests.frontends.torch.oracle import check_capture  # noqa: E402


def _view_then_base(x: Any) -> Any:
    y = x * 2
    z = y.view(-1, 2, 3)
    z[:, 0] = 0.0
    z.add_(1)
    return y, z


def _base_then_view(x: Any) -> Any:
    y = x * 2
    z = y.t()
    y.mul_(3)
    return y, z


def _strided(x: Any) -> Any:
    y = x + 0
    y[:, 1:5:2] = -1.0
    y[-1] += 5
    return y


def _chain(x: Any) -> Any:
    y = x + 0
    y.view(-1, 3, 2).transpose(1, 2)[..., 1:].select(1, 0).fill_(9.0)
    return y


def _parts(x: Any) -> Any:
    y = x + 0
    a, b, c = y.chunk(3, 1)
    b.neg_()
    first, *_ = y.split([1, 5], 1)
    first.mul_(10)
    y.unbind(1)[5].zero_()
    return y, a, b, c, first


def _diagonals(x: Any) -> Any:
    y = x[:, :1] * x[:, 0]
    y.diagonal().mul_(2)
    y.diagonal(1).zero_()
    z = y.reshape(1, *y.shape) + 0
    z.diagonal(-1, 1, 2).add_(5)
    y.fill_diagonal_(7.0)
    return y, z


def _unsafe_parts(x: Any) -> Any:
    y = x * 2
    a, b = y.unsafe_chunk(2, 1)
    c, _ = y.unsafe_split(3, 1)
    d, _ = y.unsafe_split_with_sizes([2, 4], 1)
    return a.neg_(), b, c, d


def _out_arguments(x: Any) -> Any:
    y, z = torch.empty_like(x), torch.empty(0)
    torch.add(x, 1, out=y)
    torch.pow(y, 2, out=y)
    z.resize_as_(x)
    torch.mul(y, x, out=z)
    return y, z


def _reshape_of_a_permuted(x: Any) -> Any:
    y = x + 0
    z = y.permute(1, 0).reshape(-1)  # a copy: writes do not come back
    z.fill_(1.0)
    w = y.reshape(3, -1) if False else y.reshape(-1)  # a view
    w.add_(1)
    return y, z, w


def _masked(x: Any) -> Any:
    y = x.clone()
    y[y > 0] = 0.5
    y.masked_fill_(y < -1, -1.0)
    y[torch.tensor([0, 1])] = y[torch.tensor([1, 0])]
    return y


def _copies(x: Any) -> Any:
    y = torch.zeros(6)
    rows = torch.empty_like(x)
    rows.copy_(y + 1)
    y.unsqueeze(0).expand(1, 6).squeeze(0).copy_(x[0])
    return y, rows


def _unrelated(x: Any) -> Any:
    y = x.clone()
    z = y.detach()
    z.relu_()
    return y, x


CASES: dict[str, Callable[[Any], Any]] = {
    name.removeprefix("_"): function
    for name, function in list(globals().items())
    if name.startswith("_") and callable(function) and not name.startswith("__")
}


class Wrapped(nn.Module):
    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


OF_ONE_SIZE = ("diagonals", "out_arguments")
"""What PyTorch exports for the size of the example only."""

EVERY = [(name, False) for name in CASES]
EVERY += [(name, True) for name in CASES if name not in OF_ONE_SIZE]


@pytest.mark.parametrize(("name", "is_dynamic"), EVERY)
def test_writes_reach_every_alias(name: str, is_dynamic: bool, tmp_path: Path) -> None:
    dynamic = {"x": {0: "batch"}} if is_dynamic else None
    sizes = ({}, {"batch": 5}) if is_dynamic else ({},)
    check_capture(
        Wrapped(CASES[name]), (torch.randn(3, 6),), dynamic=dynamic, sizes=sizes, folder=tmp_path
    )


@pytest.mark.parametrize("name", CASES)
def test_a_file_does_not_lose_who_shares_memory(name: str, tmp_path: Path) -> None:
    net, x = Wrapped(CASES[name]), torch.randn(3, 6)
    torch.export.save(torch.export.export(net, (x,), strict=False), tmp_path / "net.pt2")
    found = load_program(tmp_path / "net.pt2")
    expected = found.runner(True)({"x": x.numpy()})
    result = evaluate(found.module, {"x": x.numpy()})
    for output, array in expected.items():
        assert np.array_equal(result[output], array), output


class Buffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("memory", torch.zeros(2, 6))

    def forward(self, x: Any) -> Any:
        self.steps.add_(1)
        self.memory.mul_(2)
        self.memory[:, 1:3] += x[:2, :2]
        return self.memory * 3


def test_buffers_that_outputs_depend_on_are_states() -> None:
    module = capture(Buffers().eval(), (torch.randn(3, 6),)).module
    (state,) = module.states
    assert (state.name, state.input, state.output) == ("memory", "memory", "memory.next")
    assert state.kind is StateKind.BUFFER
    assert list(module.input_types) == ["x", "memory"]
    assert "steps" in module.warnings[0]

    net, x = Buffers().eval(), torch.randn(3, 6)
    memory = torch.randn(2, 6)
    net.memory.copy_(memory)
    expected = net(x)
    found = evaluate(module, {"x": x.numpy(), "memory": memory.numpy()})
    assert np.array_equal(found["output"], expected.numpy())
    assert np.array_equal(found["memory.next"], net.memory.numpy())


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # PyTorch's own
def test_buffers_of_a_decomposed_program_are_states_too() -> None:
    program = torch.export.export(Buffers().eval(), (torch.randn(3, 6),), strict=False)
    module = capture(program.run_decompositions()).module
    assert [state.name for state in module.states] == ["memory"]


class WritesInput(nn.Module):
    def forward(self, x: Any, cache: Any) -> Any:
        cache[:, 0] = x
        return cache.sum(1)


def test_inputs_that_are_written_to_are_states() -> None:
    module = capture(WritesInput(), (torch.randn(2), torch.randn(2, 3))).module
    (state,) = module.states
    assert (state.input, state.output) == ("cache", "cache.next")
    found = evaluate(
        module, {"x": np.array([1, 2], np.float32), "cache": np.ones((2, 3), np.float32)}
    )
    assert found["cache.next"].tolist() == [[1, 1, 1], [2, 1, 1]]
