"""Passes leave a captured module's parameters whole: what follows from them is computed anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="captures are compared with PyTorch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations  # noqa: E402

from regraft import Module, apply, capture, read_back, save, to_torch  # noqa: E402
from regraft.backends.onnx.runtime import OrtRunner  # noqa: E402

PASSES = "canonicalize,fold-norms,fuse"


class Normed(nn.Module):
    """Weight norm, spectral norm, and a weight that is standardized in `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = parametrizations.weight_norm(nn.Linear(6, 8))
        self.second = parametrizations.spectral_norm(nn.Linear(8, 8))
        self.third = nn.Parameter(torch.randn(4, 8))
        self.decay = nn.Parameter(torch.randn(4))

    def forward(self, x: Any) -> Any:
        w = (self.third - self.third.mean(1, keepdim=True)) / self.third.std(1, keepdim=True)
        y = nn.functional.linear(torch.relu(self.second(torch.relu(self.first(x)))), w)
        return y * (1 + self.decay) * torch.exp(-self.decay)


class Tied(nn.Module):
    """One table: some rows of it, half of it, and the whole as the matrix of a product."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 6)
        self.register_buffer("first", torch.tensor([1, 3]), persistent=False)

    def forward(self, x: Any) -> Any:
        y = x + self.table(self.first).sum(0) + self.table.weight[:2].sum(0)
        return nn.functional.linear(y, self.table.weight)


class Packed(nn.Module):
    """Projections as slices of one parameter, which together cover it."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = nn.Parameter(torch.randn(12, 6))

    def forward(self, x: Any) -> Any:
        parts = [nn.functional.linear(x, self.packed[i * 4 : i * 4 + 4]) for i in range(3)]
        return parts[0] * parts[1] + parts[2]


def _captured(kind: type[nn.Module]) -> tuple[nn.Module, Any, Module]:
    torch.manual_seed(0)
    net, x = kind().eval(), torch.randn(5, 6)
    return net, x, capture(net, (x,))


@pytest.mark.parametrize("kind", [Normed, Tied, Packed], ids=lambda kind: kind.__name__)
def test_every_parameter_keeps_name_content_and_gradient(kind: type[nn.Module]) -> None:
    net, x, module = _captured(kind)
    apply(module, PASSES)
    made = to_torch(module)
    own = dict(net.named_parameters())
    assert {name for name, _ in made.named_parameters()} == set(own)
    torch.testing.assert_close(made(x), net(x))
    made(x).square().sum().backward()
    net(x).square().sum().backward()
    for name, parameter in made.named_parameters():
        assert torch.equal(parameter, own[name])
        # sums of some dozen f32 terms, in another order
        torch.testing.assert_close(parameter.grad, own[name].grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Normed, Tied], ids=lambda kind: kind.__name__)
def test_trained_parameters_reach_the_file(kind: type[nn.Module], tmp_path: Path) -> None:
    _, x, module = _captured(kind)
    apply(module, PASSES)
    made = to_torch(module).train()
    optimizer = torch.optim.SGD(made.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        made(x).square().mean().backward()
        optimizer.step()
    read_back(module, made)
    path = save(module, tmp_path / "m.onnx", target="ort-cpu")
    found = OrtRunner(path)({module.graph.inputs[0].name: x.numpy()})
    expected = made(x).detach().numpy()
    assert found[module.graph.output_names[0]] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_legalize_folds_what_it_leaves(tmp_path: Path) -> None:
    _, _, module = _captured(Normed)
    apply(module, "canonicalize,legalize{target=ort-cpu}")
    assert not {"reduce_l2", "exp", "div", "sqrt"} & {node.op.name for node in module.graph}
    assert save(module, tmp_path / "m.onnx").exists()


class Convs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = parametrizations.weight_norm(nn.Conv2d(3, 16, 3))
        self.down = parametrizations.weight_norm(nn.Conv2d(16, 4, 1))

    def forward(self, x: Any) -> Any:
        return self.down(torch.relu(self.up(x)))


def test_pruning_takes_the_weights_that_parametrizations_give() -> None:
    torch.manual_seed(0)
    net, x = Convs().eval(), torch.randn(2, 3, 8, 8)
    module = capture(net, (x,))
    apply(module, "canonicalize,prune{target=params:0.63}")
    made = to_torch(module)
    assert made(x).shape == net(x).shape
    count = sum(weight.numel() for weight in made.parameters())
    assert count < 0.7 * sum(weight.numel() for weight in (net.up.weight, net.down.weight))
