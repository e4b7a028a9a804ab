"""Generated modules under PyTorch's own machinery."""

from __future__ import annotations

import copy
import io

import pytest

from tests.backends.torch.models import layer_inputs, layers, torch

from regraft.backends.torch import to_torch  # isort: skip  # needs torch


def _tensors(batch: int = 2) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(array) for array in layer_inputs(batch).values())


def test_export_captures_it_again_with_dynamic_sizes() -> None:
    net = to_torch(layers())
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq")}
    program = torch.export.export(net, _tensors(), dynamic_shapes=(sizes, sizes))
    torch.testing.assert_close(program.module()(*_tensors(5)), net(*_tensors(5)))


def test_compile_runs_it_in_one_graph() -> None:
    net = to_torch(layers())
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*_tensors()), net(*_tensors()))


def test_autocast_computes_products_in_the_narrow_type() -> None:
    net = to_torch(layers())
    with torch.autocast("cpu", torch.bfloat16):
        result = net(*_tensors())
    assert result.dtype == torch.bfloat16
    want = net(*_tensors())
    # five roundings to 8 bits on the way, of values up to the largest
    bound = 8 * 2**-8 * want.abs().max().item()
    torch.testing.assert_close(result.float(), want, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_modules_are_cast(dtype: torch.dtype) -> None:
    net = to_torch(layers()).to(dtype)
    assert net(*(x.to(dtype) for x in _tensors())).dtype == dtype


def test_meta_device_and_back() -> None:
    net = to_torch(layers())
    state = net.state_dict()
    empty = copy.deepcopy(net).to("meta")
    assert empty(*(x.to("meta") for x in _tensors())).shape == (6, 2, 4)
    empty = empty.to_empty(device="cpu")
    empty.load_state_dict(state)
    torch.testing.assert_close(empty(*_tensors()), net(*_tensors()))


def test_copies_are_independent() -> None:
    net = to_torch(layers())
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.head.weight.zero_()
    assert net.head.weight.abs().max() > 0


def test_state_is_pickled() -> None:
    net = to_torch(layers())
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = to_torch(layers())
    assert other.load_state_dict(state).missing_keys == []


def test_gradient_checkpoints_of_parts() -> None:
    net = to_torch(layers())
    x, mask = _tensors()
    plain = net.net.layer[0](x.requires_grad_(), mask).sum()
    plain.backward()
    want = net.net.layer[0].up.weight.grad.clone()
    net.zero_grad()
    torch.utils.checkpoint.checkpoint(
        net.net.layer[0], x, mask, use_reentrant=False
    ).sum().backward()
    torch.testing.assert_close(net.net.layer[0].up.weight.grad, want)
