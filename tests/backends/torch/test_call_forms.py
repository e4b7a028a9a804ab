"""A generated module takes and returns exactly what the captured one did."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch", reason="captures are compared with PyTorch")

from torch import nn  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402

import regraft  # noqa: E402
from regraft.backends.torch import source_of  # noqa: E402
from regraft.backends.torch.executor import TorchRunner, load_file  # noqa: E402
from regraft.backends.torch.save import save_torch  # noqa: E402
from regraft.ir.text import parse_module  # noqa: E402


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass
class Batch:
    ids: Any
    mask: Any = None
    scale: float = 1.0


torch.export.register_dataclass(Batch)


class Nested(nn.Module):
    """Takes a dict, an object, a list with a named tuple, and numbers."""

    def forward(
        self, inputs: Any, batch: Batch, items: Any, flag: bool = True, *, mode: str = "sum",
        bias: Any = None,
    ) -> Any:  # fmt: skip
        y = inputs["x"] + batch.ids * batch.scale + items[0] * items[1].second
        y = y if batch.mask is None else y * batch.mask
        y = y.neg() if flag else y
        y = y.sum(-1) if mode == "sum" else y
        y = y if bias is None else y + bias
        return {
            "tuple": (y, inputs["deep"][0]),
            "list": [y * 2],
            "pair": Pair(y + 1, y.shape[0]),
            "batch": Batch(y * 3),
            "nothing": None,
            "number": 5,
            "text": mode,
        }


def _arguments(rows: int = 2) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def x(seed: int) -> Any:
        return torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))

    inputs = {"x": x(0), "deep": [x(1)]}
    return (inputs, Batch(x(2), scale=2.0), [x(3), Pair(x(4), x(5))]), {"flag": True, "mode": "sum"}


def _captured() -> tuple[nn.Module, regraft.Module]:
    net = Nested().eval()
    args, kwargs = _arguments()
    rows = {0: "rows"}
    shapes = {"inputs": rows, "batch": rows, "items": rows}
    return net, regraft.capture(net, args, kwargs, dynamic_shapes=shapes)


def _check_equal(found: Any, expected: Any) -> None:
    mine, my_spec = pytree.tree_flatten(found)
    its, its_spec = pytree.tree_flatten(expected)
    assert my_spec == its_spec
    for a, b in zip(mine, its, strict=True):
        assert type(a) is type(b)
        if isinstance(a, torch.Tensor):
            torch.testing.assert_close(a, b)
        else:
            assert a == b


@pytest.mark.parametrize("passes", ["", "canonicalize,fuse"])
def test_nested_arguments_and_results_come_back(passes: str) -> None:
    net, module = _captured()
    regraft.apply(module, passes)
    made = regraft.to_torch(parse_module(str(module)))
    args, kwargs = _arguments()
    _check_equal(made(*args, **kwargs), net(*args, **kwargs))
    _check_equal(made(*args), net(*args))
    _check_equal(made(*args[:2], items=args[2]), net(*args))


def test_the_order_of_a_dict_does_not_matter() -> None:
    net, module = _captured()
    (inputs, *rest), kwargs = _arguments()
    turned = dict(reversed(inputs.items()))
    _check_equal(regraft.to_torch(module)(turned, *rest, **kwargs), net(inputs, *rest, **kwargs))


@pytest.mark.parametrize(
    ("given", "message"),
    [({"flag": False}, "`flag` was True"), ({"mode": "all"}, "`mode` was 'sum'")],
)
def test_another_constant_than_that_of_the_capture_is_refused(given: Any, message: str) -> None:
    _, module = _captured()
    with pytest.raises(ValueError, match=message):
        regraft.to_torch(module)(*_arguments()[0], **given)


def test_arguments_that_the_capture_did_not_have_are_unknown() -> None:
    _, module = _captured()
    args, kwargs = _arguments()
    with pytest.raises(TypeError, match="bias"):
        regraft.to_torch(module)(*args, **kwargs, bias=torch.zeros(1))


def test_a_written_file_reads_objects_and_returns_plain_ones(tmp_path: Path) -> None:
    net, module = _captured()
    save_torch(module, tmp_path / "model.py")
    text = (tmp_path / "model.py").read_text()
    assert "Batch(" not in text
    made = load_file(tmp_path / "model.py")
    args, kwargs = _arguments()
    found, expected = made(*args, **kwargs), net(*args, **kwargs)
    assert found["pair"][1] == expected["pair"].second
    torch.testing.assert_close(found["pair"][0], expected["pair"].first)
    torch.testing.assert_close(found["batch"]["ids"], expected["batch"].ids)
    assert found["list"][0].equal(expected["list"][0])


def test_runners_give_nested_arguments_and_read_nested_results() -> None:
    net, module = _captured()
    (inputs, batch, items), _ = _arguments()
    arrays = [inputs["x"], inputs["deep"][0], batch.ids, items[0], *items[1]]
    names = [value.name for value in module.graph.inputs]
    sample = {name: tensor.numpy() for name, tensor in zip(names, arrays, strict=True)}
    found = TorchRunner(regraft.to_torch(module), module)(sample)
    expected = net(inputs, batch, items)
    assert found["tuple.0"] == pytest.approx(expected["tuple"][0].numpy())
    assert set(found) == set(module.graph.output_names)


class Skips(nn.Module):
    def forward(self, x: Any, middle: Any = None, last: Any = None) -> Any:
        x = x if middle is None else x * middle
        return x if last is None else x + last


def test_a_parameter_after_one_that_was_not_given_is_a_keyword() -> None:
    net, x = Skips().eval(), torch.randn(3)
    made = regraft.to_torch(regraft.capture(net, (x,), {"last": x * 2}))
    parameters = inspect.signature(made.forward).parameters
    assert parameters["last"].kind is inspect.Parameter.KEYWORD_ONLY
    torch.testing.assert_close(made(x, last=x), net(x, last=x))
    made = regraft.to_torch(regraft.capture(net, (x,), {"middle": x * 2}))
    torch.testing.assert_close(made(x, x), net(x, x))
    made = regraft.to_torch(regraft.capture(net, (x, None, x)))
    torch.testing.assert_close(made(x, None, x), net(x, None, x))
    with pytest.raises(ValueError, match="`middle` was None"):
        made(x, x, x)


def test_names_of_parameters_are_the_module_s_own() -> None:
    net, x = nn.Linear(3, 2).eval(), torch.randn(2, 3)
    made = regraft.to_torch(regraft.capture(net, (x,)))
    torch.testing.assert_close(made(input=x), net(input=x))


class Sizes(nn.Module):
    def forward(self, x: Any, count: int) -> Any:
        return x.repeat(count, 1), count * 2, x.shape[0]


def test_sizes_are_integers_in_and_out() -> None:
    net, x = Sizes().eval(), torch.randn(3, 2)
    shapes = {"x": {0: "rows"}, "count": torch.export.Dim.DYNAMIC}
    made = regraft.to_torch(regraft.capture(net, (x, 4), dynamic_shapes=shapes))
    _check_equal(made(torch.ones(5, 2), 6), net(torch.ones(5, 2), 6))


class Writes(nn.Module):
    def forward(self, x: Any, cache: Any) -> Any:
        before, part = cache.clone(), cache[:, 0]
        cache.add_(x)
        return before, part, x * 2


def test_writes_to_arguments_are_writes_and_no_results() -> None:
    net = Writes().eval()
    x, cache = torch.randn(2, 3), torch.randn(2, 3)
    module = regraft.capture(net, (x, cache.clone()))
    made = regraft.to_torch(module)
    mine, its = cache.clone(), cache.clone()
    _check_equal(made(x, mine), net(x, its))
    torch.testing.assert_close(mine, its)
    explicit = regraft.to_torch(module, states="explicit")(x, cache)
    assert len(explicit) == 4
    torch.testing.assert_close(explicit[3], its)
    names = [value.name for value in module.graph.inputs]
    sample = dict(zip(names, (x.numpy(), cache.numpy()), strict=True))
    found = TorchRunner(regraft.to_torch(module), module)(sample)
    assert found["cache.next"] == pytest.approx(its.numpy())


class Swaps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("a", torch.zeros(2))
        self.register_buffer("b", torch.ones(2))

    def forward(self, x: Any) -> Any:
        old = self.a.clone()
        self.a.copy_(self.b)
        self.b.copy_(old + x)
        return old


def test_buffers_that_take_each_other_s_content() -> None:
    net, x = Swaps().eval(), torch.ones(2)
    made = regraft.to_torch(regraft.capture(net, (x,)))
    for _ in range(3):
        torch.testing.assert_close(made(x), net(x))
    torch.testing.assert_close(made.a, net.a)
    torch.testing.assert_close(made.b, net.b)


class ParametersAlone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2))
        self.register_buffer("table", torch.randn(2))

    def forward(self, x: Any) -> Any:
        return self.weight, self.weight.t() * 2, self.table, x.sum() * 0 + 1


@pytest.mark.parametrize("passes", ["", "canonicalize"])
def test_results_that_depend_on_parameters_alone(passes: str) -> None:
    net, x = ParametersAlone().eval(), torch.randn(2)
    module = regraft.capture(net, (x,))
    regraft.apply(module, passes)
    made = regraft.to_torch(module)
    for a, b in zip(made(x), net(x), strict=True):
        torch.testing.assert_close(a, b)
    made(x)[1].sum().backward()
    assert made.weight.grad is not None
    assert set(made.state_dict()) == set(net.state_dict())


class Ordered(nn.Module):
    def forward(self, x: Any) -> Any:
        return OrderedDict(b=x + 1, a={1: x, 2: torch.max(x, -1)})


def test_ordered_results_and_keys_that_are_numbers() -> None:
    net, x = Ordered().eval(), torch.randn(2, 3)
    made = regraft.to_torch(regraft.capture(net, (x,)))
    found, expected = made(x), net(x)
    assert list(found) == list(expected)
    torch.testing.assert_close(found["a"][1], expected["a"][1])
    torch.testing.assert_close(found["a"][2].values, expected["a"][2].values)


def test_the_source_reads_like_the_module() -> None:
    _, module = _captured()
    text = source_of(regraft.to_torch(module))
    assert "def forward(self, inputs, batch, items, flag=True, *, mode='sum')" in text.replace(
        '"', "'"
    )
    assert 'inputs["x"]' in text
    assert "batch.ids" in text
