"""Norms whose statistics are detached: in PyTorch and in packages they compute what the model does.

Their gradients are not those of the norms that they look like: no operator takes their place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from torch import Tensor, nn

import regraft
from tests.backends.triton.harness import interpreted
from tests.backends.triton.test_package import imported

# numpy's, of lanes that are masked; checks of conversions run in threads
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")

WIDTH = 16


def rms(x: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt().detach()


def rms_of_squares(x: Tensor) -> Tensor:
    return x / (x.detach().square().mean(-1, keepdim=True) + 1e-6).sqrt()


def deviation(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt().detach()


def mean(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True).detach()
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def both(x: Tensor) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
    return (x - mean.detach()) * (variance.detach() + 1e-5).rsqrt()


def softmax(x: Tensor) -> Tensor:
    # what is subtracted cancels: its gradient is that of none
    powers = (x - x.amax(-1, keepdim=True).detach()).exp()
    return powers / powers.sum(-1, keepdim=True)


class Net(nn.Module):
    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, WIDTH))
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.up(x)
        return y + self.down(self.norm(y) * self.gain)


def gradients(net: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns what a model computes and the gradients of its parameters and input."""
    x = x.clone().requires_grad_()
    net.zero_grad()
    y = net(x)
    (y * torch.linspace(-1, 2, y.numel()).reshape(y.shape)).sum().backward()
    return y.detach(), {"": x.grad, **{name: p.grad for name, p in net.named_parameters()}}


@pytest.mark.parametrize("target", ["torch", "triton"])
@pytest.mark.parametrize("norm", [rms, rms_of_squares, deviation, mean, both, softmax])
def test_values_and_gradients_are_those_of_the_model(
    norm: Any, target: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net, x = Net(norm), 3 * torch.randn(2, 5, WIDTH) + 1
    with interpreted():
        folder = tmp_path / f"{norm.__name__}_{target}"
        result = regraft.convert(net.eval(), folder, args=(x,), target=target)
        assert any(node.op.name == "stop_gradient" for node in result.module.graph)
        found, slopes = gradients(imported(folder, "model").load(), x)
        if target == "triton":
            assert imported(folder, "selftest").main(["--device", "cpu"]) == 0
    expected, wanted = gradients(net, x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert set(slopes) == set(wanted)
    for name, slope in wanted.items():  # sums of some hundreds of products of f32
        torch.testing.assert_close(slopes[name], slope, rtol=1e-4, atol=1e-4)
