"""Branches, loops, regions and row-wise functions against PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="captures are compared with PyTorch")

from torch import nn  # noqa: E402
from torch._higher_order_ops.map import map as mapped  # noqa: E402
from torch._higher_order_ops.scan import scan  # noqa: E402
from torch._higher_order_ops.while_loop import while_loop  # noqa: E402

from regraft.frontends.torch.capture import capture  # noqa: E402
from regraft.ir.evaluate import evaluate  # noqa: E402
from tests.frontends.torch.oracle import check_capture  # noqa: E402


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)


class Branch(Layer):
    def forward(self, x: Any) -> Any:
        rows = x.shape[0]
        return torch.cond(x.sum() > 0, lambda x: self.layer(x) + rows, lambda x: x - 1, (x,))


class While(Layer):
    def forward(self, x: Any) -> Any:
        return while_loop(
            lambda i, x: i < 3, lambda i, x: (i + 1, self.layer(x)), (torch.tensor(0), x)
        )


class Scan(Layer):
    def forward(self, x: Any) -> Any:
        def step(carried: Any, row: Any) -> Any:
            after = torch.tanh(self.layer(carried) + row)
            return after, after * 2

        return scan(step, torch.zeros(4) + x[0, 0], x)


class Mapped(Layer):
    def forward(self, x: Any) -> Any:
        return mapped(lambda row, last: (self.layer(row), row * last), x, x[-1] + 0)


class Region(Layer):
    def forward(self, x: Any) -> Any:
        region = torch.compiler.nested_compile_region(lambda x: self.layer(x).relu())
        return region(region(x))


class NoGrad(Layer):
    def forward(self, x: Any) -> Any:
        y = x + 0
        with torch.no_grad():
            y.add_(1)
            z = self.layer(y)
        return y, z * 2


class Rows(nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.vmap(lambda row: row.sum() * 2)(x)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # PyTorch's own, of regions
@pytest.mark.parametrize("net", [Branch, While, Scan, Mapped, Region, NoGrad, Rows])
@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
def test_region_equals_the_original(net: type[nn.Module], sign: int, tmp_path: Path) -> None:
    check_capture(
        net(), (torch.rand(3, 4) * sign,), dynamic={"x": {0: "batch"}},
        sizes=({}, {"batch": 1}, {"batch": 5}), folder=tmp_path,
    )  # fmt: skip


class Autocast(Layer):
    def forward(self, x: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            y = self.layer(x)
        with torch.autocast("cpu", enabled=False):
            return y.float() * 2, y


def test_autocast_computes_in_its_type() -> None:
    net, x = Autocast().eval(), torch.randn(3, 4)
    found = evaluate(capture(net, (x,)).module, {"x": x.numpy()})
    wide, half = net(x)
    assert found["output.1"].dtype.name == "bfloat16"
    # one rounding to 8 bits of mantissa on each side
    assert np.abs(found["output.0"] - wide.detach().numpy()).max() <= 2**-7 * wide.abs().max()
    assert half.dtype is torch.bfloat16


class Items(nn.Module):
    def forward(self, x: Any, n: Any) -> Any:
        count = n.item()
        torch._check(count >= 0)
        torch._check(count <= 10)
        found = torch.nonzero(x > 0)
        return torch.zeros(count) + 1, found, found.shape[0] * 2, x * x.shape[0] ** -0.5


def test_sizes_that_only_the_data_knows(tmp_path: Path) -> None:
    check_capture(
        Items(), (torch.randn(3, 4), torch.tensor(4)), dynamic={"x": {0: "batch"}},
        sizes=({}, {"batch": 5}), folder=tmp_path,
    )  # fmt: skip
