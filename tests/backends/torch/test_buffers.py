"""Buffers of a captured model: those outside its `state_dict` stay outside."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="captures are compared with PyTorch")

from torch import nn  # noqa: E402

from regraft import apply, capture, to_torch  # noqa: E402
from regraft.ir.weights import Role  # noqa: E402


class Table(nn.Module):
    """A computed table that no checkpoint holds, an index into a trained one, and a mean."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(8, size))
        self.register_buffer("angles", torch.randn(size), persistent=False)
        self.register_buffer("index", torch.arange(8).flip(0), persistent=False)
        self.register_buffer("mean", torch.randn(size))

    def forward(self, x: Any) -> Any:
        return (x - self.mean) * self.angles + self.bias[self.index]


class Cache(nn.Module):
    """A buffer that the forward writes to, and that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(40), persistent=False)

    def forward(self, x: Any) -> Any:
        self.total.add_(x.sum(0))
        return self.total + x


@pytest.mark.parametrize("size", [4, 400])
@pytest.mark.parametrize("passes", ["", "canonicalize"])
def test_only_what_the_model_stores_is_stored(size: int, passes: str) -> None:
    net, x = Table(size).eval(), torch.randn(8, size)
    module = capture(net, (x,))
    if passes:
        apply(module, passes)
    made = to_torch(module)
    assert set(made.state_dict()) == set(net.state_dict())
    torch.testing.assert_close(made(x), net(x))
    # constants move with the module all the same
    assert all(t.is_meta for t in made.to("meta").buffers())


def test_a_computed_buffer_is_a_constant_of_the_module() -> None:
    module = capture(Table(400).eval(), (torch.randn(8, 400),))
    roles = {name: module.weights.role(name) for name in module.weights}
    assert roles == {"bias": Role.PARAM, "mean": Role.BUFFER, "angles": Role.CONST}


def test_a_written_buffer_outside_the_state_dict_stays_outside() -> None:
    net, x = Cache().eval(), torch.randn(3, 40)
    made = to_torch(capture(net, (x,)))
    assert not made.state_dict()
    for _ in range(2):
        torch.testing.assert_close(made(x), net(x))
