"""Parameters that start as zeros or ones are not dropped before they were trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="captures are compared with PyTorch")

from torch import nn  # noqa: E402

from regraft import Module, apply, capture, save, to_torch  # noqa: E402
from regraft.ir.text.parser import parse_module  # noqa: E402
from regraft.passes.legalize import Legalize  # noqa: E402


class Fresh(nn.Module):
    """Gain of ones, shifts of zeros, attention whose biases start at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.gain = nn.Parameter(torch.ones(8))
        self.shift = nn.Parameter(torch.zeros(8))
        self.register_buffer("offset", torch.zeros(8))

    def forward(self, x: Any) -> Any:
        y = self.attention(x, x, x, need_weights=False)[0]
        return (y + self.offset) * self.gain - self.shift


def captured() -> tuple[Fresh, Any, Module]:
    torch.manual_seed(0)
    net, x = Fresh().eval(), torch.randn(2, 5, 8)
    return net, x, capture(net, (x,))


def count(module: Module, *names: str) -> int:
    return sum(node.op.name in names for node in module.graph)


def test_canonicalize_keeps_every_parameter_of_a_fresh_module() -> None:
    net, x, module = captured()
    apply(module, "canonicalize,fuse")
    again = to_torch(module)
    assert {name for name, _ in again.named_parameters()} == {
        name for name, _ in net.named_parameters()
    }
    net(x).square().sum().backward()
    again(x).square().sum().backward()
    expected = dict(net.named_parameters())
    for name, parameter in again.named_parameters():
        # sums of some hundred f32 terms in another order
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-5)


def test_canonicalize_drops_a_buffer_of_zeros() -> None:
    _, _, module = captured()
    apply(module, "canonicalize")
    assert "offset" not in module.weights


def test_text_form_says_that_a_module_is_trainable() -> None:
    _, _, module = captured()
    again = parse_module(str(module))
    assert again.weights.trainable
    assert module.clone().weights.trainable
    assert str(again) == str(module)


def test_legalize_drops_initial_values(tmp_path: Path) -> None:
    _, _, module = captured()
    apply(module, "canonicalize,fuse")
    assert count(module, "add", "sub")
    apply(module, [Legalize("ort-cpu")])
    assert not module.weights.trainable
    assert not count(module, "add", "sub")
    assert save(module, tmp_path / "fresh.onnx").exists()


class BatchStatistics(nn.Module):
    """Batch norm without running statistics, in front of a layer that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))

    def forward(self, x: Any) -> Any:
        return self.body(x)


@pytest.mark.parametrize("passes", ["", "canonicalize,fold-norms,fuse"])
def test_batch_norm_of_computed_statistics_trains(passes: str) -> None:
    torch.manual_seed(0)
    net, x = BatchStatistics().eval(), torch.randn(2, 3, 6, 6)
    module = capture(net, (x,))
    apply(module, passes)
    again = to_torch(module)
    torch.testing.assert_close(again(x), net(x), rtol=1e-5, atol=1e-5)
    again(x).pow(3).sum().backward()
    net(x).pow(3).sum().backward()
    expected = dict(net.named_parameters())
    for name, parameter in again.named_parameters():
        scale = float(expected[name].grad.abs().max())
        # the gradient of the bias before a norm is zero but for rounding
        atol = 1e-4 * max(scale, 1.0)
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=atol)
