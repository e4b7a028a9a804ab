"""Custom operators: refused with the way out, or carried through to PyTorch as they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="captures are compared with PyTorch")

from torch import nn  # noqa: E402

from regraft import apply, capture, save, to_torch  # noqa: E402
from regraft.backends.torch import source_of  # noqa: E402
from regraft.ir.constants import opaque  # noqa: E402
from regraft.ir.errors import UnsupportedError  # noqa: E402
from regraft.ir.text import parse_module  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def _library() -> Iterator[None]:
    library = torch.library.Library("regraft_test", "FRAGMENT")
    library.define("mix(Tensor x, Tensor[] ys, float factor=1.0, str how='sum') -> Tensor")
    library.define("ends(Tensor x, int count) -> (Tensor, Tensor)")
    library.define("bump_(Tensor(a!) x) -> Tensor(a!)")

    def mix(x: Any, ys: Any, factor: float = 1.0, how: str = "sum") -> Any:
        return x * factor + sum(ys) if how == "sum" else x - ys[0]

    def ends(x: Any, count: int) -> Any:
        return x[..., :count].clone(), x[..., -count:].clone()

    for name, function in (("mix", mix), ("ends", ends), ("bump_", lambda x: x.add_(1))):
        library.impl(name, function, "CompositeExplicitAutograd")
    yield
    library._destroy()


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6))

    def forward(self, x: Any) -> Any:
        ops = torch.ops.regraft_test
        first, last = ops.ends(x + 1, 3)
        mixed = ops.mix(x, [x * 2, self.weight.expand_as(x)], factor=0.5)
        return mixed.relu(), ops.mix(first, [last], how="difference")


class Writes(nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.ops.regraft_test.bump_(x * 2)


SIZES = {"x": {0: "rows"}}


def test_custom_operators_are_refused_with_the_way_out() -> None:
    with pytest.raises(UnsupportedError) as caught:
        capture(Custom().eval(), (torch.randn(2, 6),), dynamic_shapes=SIZES)
    assert "regraft_test.mix.default` x 2" in caught.value.message
    assert "test_opaque.py" in caught.value.message
    assert "torch_importers" in str(caught.value.hint)
    assert "opaque=[namespace]" in str(caught.value.hint)


def test_kept_operators_are_the_same_calls_in_pytorch() -> None:
    net = Custom().eval()
    module = capture(net, (torch.randn(2, 6),), dynamic_shapes=SIZES, opaque=["regraft_test"])
    apply(module, "canonicalize")
    kept = [node for node in module.graph if node.op is opaque]
    assert {node.attrs["dialect"] for node in kept} == {"torch:regraft_test"}
    made = to_torch(module)
    assert "torch.ops.regraft_test.mix.default(x=" in source_of(made)
    for rows in (2, 5):
        x = torch.randn(rows, 6)
        for got, wanted in zip(made(x), net(x), strict=True):
            torch.testing.assert_close(got, wanted)


def test_kept_operators_survive_the_text_form() -> None:
    module = capture(Custom().eval(), (torch.randn(2, 6),), opaque=["regraft_test"])
    text = str(module)
    assert 'dialect = "torch:regraft_test"' in text
    assert str(parse_module(text)) == text


def test_onnx_refuses_kept_operators(tmp_path: Path) -> None:
    module = capture(Custom().eval(), (torch.randn(2, 6),), opaque=["regraft_test"])
    with pytest.raises(UnsupportedError, match="regraft_test"):
        save(module, tmp_path / "m.onnx")


def test_operators_that_write_are_not_kept() -> None:
    with pytest.raises(UnsupportedError, match="bump_"):
        capture(Writes(), (torch.randn(2),), opaque=["regraft_test"])


class Solves(nn.Module):
    """Calls of PyTorch's own that no ONNX operator computes, and one that takes several tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4) * 3)

    def forward(self, x: Any) -> Any:
        square = x.mT @ x + self.weight
        return torch.linalg.solve(square, torch.lgamma(x.abs() + 1).mT)


def test_calls_of_pytorch_without_an_ir_form_are_kept() -> None:
    net = Solves().eval()
    module = capture(net, (torch.randn(2, 3, 4),), dynamic_shapes=SIZES)
    apply(module, "canonicalize")
    assert {node.attrs["dialect"] for node in module.graph if node.op is opaque} == {"torch:aten"}
    made = to_torch(module)
    x = torch.randn(5, 3, 4)
    torch.testing.assert_close(made(x), net(x))
    made(x).sum().backward()
    net(x).sum().backward()
    torch.testing.assert_close(made.weight.grad, net.weight.grad)


def test_onnx_refuses_all_of_them_with_their_lines(tmp_path: Path) -> None:
    module = capture(Solves().eval(), (torch.randn(2, 3, 4),))
    with pytest.raises(UnsupportedError) as caught:
        save(module, tmp_path / "m.onnx")
    assert "2 operators of PyTorch have no ONNX form" in caught.value.message
    assert "`aten.lgamma.default` x 1 at " in caught.value.message
    assert "`aten._linalg_solve_ex.default` x 1 at " in caught.value.message
    assert "test_opaque.py" in caught.value.message
    assert "target `torch`" in str(caught.value.hint)


class LooksAtMemory(nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.as_strided(x, (2, 2), (1, 2))


def test_calls_that_depend_on_the_memory_layout_are_not_kept() -> None:
    with pytest.raises(UnsupportedError, match=r"as_strided"):
        capture(LooksAtMemory(), (torch.randn(2, 3),))
