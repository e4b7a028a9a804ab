"""A pruned module has the parameters of the original: names, layouts, ties; they are read back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="captures are pruned")

from torch import nn  # noqa: E402

from regraft import Module, apply, capture, read_back, to_torch  # noqa: E402

PRUNE = "prune{target=params:0.6}"
IDS = torch.arange(10).reshape(2, 5)


class Tied(nn.Module):
    """A table that is the head, too, and a block between; sizes are arguments."""

    def __init__(self, width: int = 32, inner: int = 64) -> None:
        super().__init__()
        self.emb = nn.Embedding(50, width)
        self.norm = nn.LayerNorm(width)
        self.f = nn.Linear(width, inner)
        self.g = nn.Linear(inner, width)
        self.h = nn.Linear(width, 50, bias=False)
        self.h.weight = self.emb.weight
        self.register_buffer("first", torch.tensor([1, 3, 4, 0, 7]), persistent=False)

    def forward(self, ids: Any) -> Any:
        x = self.emb(ids)
        x = x + self.g(nn.functional.gelu(self.f(self.norm(x))))
        return self.h(x + self.emb(self.first))


def _captured() -> tuple[nn.Module, Module]:
    torch.manual_seed(0)
    net = Tied().eval()
    return net, capture(net, (IDS,))


def _plain(state: dict[str, Any]) -> nn.Module:
    """Returns the class itself in the sizes of a `state_dict`, which it takes as it is."""
    net = Tied(state["emb.weight"].shape[1], state["f.weight"].shape[0]).eval()
    net.load_state_dict(state, strict=True)
    return net


@pytest.mark.parametrize("passes", ["", "canonicalize,", "canonicalize,fuse,"])
def test_a_smaller_instance_of_the_class_takes_the_weights(passes: str) -> None:
    net, module = _captured()
    apply(module, passes + "prune{target=params:0.6}")
    made = to_torch(module)
    state = made.state_dict()
    assert set(state) == set(net.state_dict())
    assert made.h.weight is made.emb.weight
    assert state["f.weight"].shape[0] < 64
    torch.testing.assert_close(_plain(state)(IDS), made(IDS))


def test_ties_and_names_outlast_recovery() -> None:
    _, module = _captured()
    samples = [{"ids": np.random.default_rng(i).integers(0, 50, (2, 5))} for i in range(4)]
    apply(
        module,
        "canonicalize,prune{target=params:0.6},recover{steps=5,rate=0.01}",
        samples=samples,
    )
    made = to_torch(module)
    torch.testing.assert_close(_plain(made.state_dict())(IDS), made(IDS))
    assert made.h.weight is made.emb.weight


@pytest.mark.parametrize("passes", ["", "canonicalize", PRUNE, f"canonicalize,{PRUNE}"])
def test_one_net_is_read_back_again_and_again(passes: str) -> None:
    _, module = _captured()
    apply(module, passes)
    made = to_torch(module)
    names = set(made.state_dict())
    for _ in range(3):
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(1)
        assert set(read_back(module, made)) == names - {"h.weight"}
        again = to_torch(module)
        assert set(again.state_dict()) == names
        torch.testing.assert_close(again(IDS), made(IDS))


def test_parameters_of_parametrizations_are_read_back_again_and_again() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(8, 32)), nn.ReLU(), nn.Linear(32, 4)
    ).eval()
    x = torch.randn(3, 8)
    module = capture(net, (x,))
    apply(module, "prune{target=params:0.6}")
    made = to_torch(module)
    for _ in range(2):
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.mul_(1.5)
        read_back(module, made)
        torch.testing.assert_close(to_torch(module)(x), made(x))


def test_tied_tables_lose_the_same_channels_where_nothing_else_couples_them() -> None:
    class Apart(Tied):
        def forward(self, ids: Any) -> Any:
            x = nn.functional.gelu(self.f(self.emb(ids)))
            return self.h(torch.tanh(self.g(x)))

    torch.manual_seed(0)
    module = capture(Apart().eval(), (IDS,))
    apply(module, "canonicalize,prune{target=params:0.6}")
    made = to_torch(module)
    assert made.h.weight is made.emb.weight
    assert made.emb.weight.shape[1] < 32
    assert made.g.weight.shape[0] == made.f.weight.shape[1] == made.emb.weight.shape[1]
