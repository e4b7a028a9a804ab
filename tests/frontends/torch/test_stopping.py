"""Where gradients end: `detach` in what is captured."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="captures are compared with PyTorch")

from torch import Tensor, nn  # noqa: E402

import regraft  # noqa: E402
from regraft.ir.ops.cast import stop_gradient  # noqa: E402


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("places", torch.linspace(0, 1, 4))


class Detached(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).tanh()
        return self.second(y.detach()) + y


class StraightThrough(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.second(y + (y.round() - y).detach())


@pytest.mark.parametrize("kind", [Detached, StraightThrough])
@pytest.mark.parametrize("passes", ["", "canonicalize,fuse"])
def test_gradients_end_where_the_model_ends_them(kind: Any, passes: str) -> None:
    torch.manual_seed(0)
    net, x = kind(), torch.randn(3, 4)
    module = regraft.capture(net, (x,))
    if passes:
        regraft.apply(module, passes)
    made = regraft.to_torch(module)
    for each in (net, made):
        each(x).square().sum().backward()
    expected = {name: p.grad for name, p in net.named_parameters()}
    assert any(node.op is stop_gradient for node in module.graph)
    for name, p in made.named_parameters():
        # sums of a few products of f32
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-5, atol=1e-6)


class OfConstants(Net):
    def forward(self, x: Tensor) -> Tensor:
        angles = self.places * torch.arange(4).float()
        return self.first(x) * angles.detach().cos() + (x > 0).detach()


def test_what_no_gradient_reaches_is_not_marked() -> None:
    module = regraft.capture(OfConstants(), (torch.randn(3, 4),))
    assert not any(node.op is stop_gradient for node in module.graph)


def test_onnx_has_the_value_itself(tmp_path: Any) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="runs the model")
    net, x = StraightThrough().eval(), torch.randn(3, 4)
    regraft.convert(net, tmp_path / "net.onnx", args=(x,), target="onnx", check="off")
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), net(x).detach(), rtol=1e-5, atol=1e-6)


class Statistics(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        size = (y.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        return self.second(y * size.detach())


@pytest.mark.parametrize("target", ["onnx", "ort-cpu"])
def test_files_for_inference_are_recognized_between_the_ends(target: str, tmp_path: Any) -> None:
    net, x = Statistics(), torch.randn(3, 4)
    assert any(node.op is stop_gradient for node in regraft.capture(net, (x,)).graph)
    options = {"opset": 23} if target == "onnx" else {}
    result = regraft.convert(
        net, tmp_path / "made", args=(x,), target=target, passes="canonicalize,fuse", **options
    )
    names = [node.op.name for node in result.module.graph]
    assert "stop_gradient" not in names
    assert any("rms_norm" in name for name in names)


def test_legalization_leaves_no_ends() -> None:
    module = regraft.capture(Detached(), (torch.randn(3, 4),))
    regraft.apply(module, "legalize{target=ort-cpu}")
    assert all(node.op is not stop_gradient for node in module.graph)


class WrittenThrough(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = y.detach()
        z[:, 1:].add_(1)
        return self.second(y)


class Untrained(Net):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.fft.rfft(self.first(x)).abs().sum(-1, keepdim=True) + x)


@pytest.mark.parametrize("kind", [WrittenThrough, Untrained])
def test_what_is_written_or_within_no_grad_trains(kind: Any) -> None:
    torch.manual_seed(0)
    net, x = kind(), torch.randn(3, 4)
    made = regraft.to_torch(regraft.capture(net, (x,)))
    result = made(x)
    torch.testing.assert_close(result, net(x), rtol=1e-5, atol=1e-6)
    result.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in made.parameters())


def test_gradient_of_what_is_written_through_is_that_of_what_it_was() -> None:
    torch.manual_seed(0)
    net, x = WrittenThrough(), torch.randn(3, 4)
    made = regraft.to_torch(regraft.capture(net, (x,)))
    for each in (net, made):
        each(x).square().sum().backward()
    expected = {name: p.grad for name, p in net.named_parameters()}
    for name, p in made.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-5, atol=1e-6)
