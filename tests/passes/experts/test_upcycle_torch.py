"""Experts of PyTorch modules: equal at first, and trained from there."""

from __future__ import annotations

import pytest

import regraft

torch = pytest.importorskip("torch", reason="modules are captured with PyTorch")

from torch import nn  # noqa: E402


class Block(nn.Module):
    """A gated block and one of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(16, 48, bias=False)
        self.up = nn.Linear(16, 48, bias=False)
        self.down = nn.Linear(48, 16, bias=False)
        self.one = nn.Conv2d(16, 32, 1)
        self.two = nn.Conv2d(32, 16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reads f32[B, H, W, 16]."""
        x = x + self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        image = x.permute(0, 3, 1, 2)
        return image + self.two(nn.functional.gelu(self.one(image)))


@pytest.mark.parametrize("options", ["", ",method=virtual-groups,groups=2"])
def test_a_module_is_equal_at_first_and_trains(options: str) -> None:
    torch.manual_seed(0)
    net, x = Block().eval(), torch.randn(2, 3, 4, 16)
    module = regraft.capture(net, (x,))
    regraft.apply(module, f"canonicalize,upcycle-ffn{{experts=4,top-k=2{options}}}")
    made = regraft.to_torch(module)
    want = net(x).detach()
    got = made(x)
    assert (got - want).abs().max() <= 1e-6 * want.abs().max()
    names = dict(made.named_parameters())
    routers = [name for name in names if name.endswith("router")]
    assert sorted(routers) == ["down.router", "two.router"]
    # with equal experts a router has no gradient: they part first
    for step in range(2):
        made.zero_grad()
        made(x).square().mean().backward()
        gradients = [names[name].grad for name in routers]
        assert all(each is not None for each in gradients)
        largest = max(float(each.abs().max()) for each in gradients if each is not None)
        assert (largest > 1e-6) == (step == 1 or "groups" in options)
        with torch.no_grad():
            for parameter in names.values():
                parameter -= 5 * parameter.grad
