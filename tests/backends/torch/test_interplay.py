"""Generated modules under PyTorch's own machinery."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import regraft
from tests.backends.torch.models import layer_inputs, layers, torch

from regraft.backends.torch import source_of, to_torch  # isort: skip  # needs torch


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


class Regular(torch.nn.Module):
    """Dropout and batch norm, which do otherwise in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.ReLU(),
            torch.nn.Dropout(0.5), torch.nn.Conv2d(6, 2, 1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def _regular() -> tuple[torch.nn.Module, torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    net = Regular()
    for _ in range(3):
        net(torch.randn(4, 3, 8, 8))  # the statistics are not the initial ones
    net.eval()
    x = torch.randn(2, 3, 8, 8)
    return net, to_torch(regraft.capture(net, (x,), dynamic_shapes=({0: "batch"},))), x


def test_training_mode_is_the_captured_mode() -> None:
    net, made, x = _regular()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    assert before.keys() == net.state_dict().keys() - {"body.1.num_batches_tracked"}
    torch.testing.assert_close(made.train()(x), net(x))
    torch.testing.assert_close(made.eval()(x), net(x))
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, before[name])
    made.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_a_state_dict_of_the_original_loads() -> None:
    net, made, x = _regular()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    missing = made.load_state_dict(net.state_dict(), strict=False)
    assert missing.missing_keys == []
    assert missing.unexpected_keys == ["body.1.num_batches_tracked"]
    torch.testing.assert_close(made(x), net(x))


@pytest.mark.parametrize("train", [True, False])
def test_modules_are_pickled_with_source_and_weights(train: bool) -> None:
    _, made, x = _regular()
    made.train(train)
    made.body[0].weight.requires_grad_(False)
    again = pickle.loads(pickle.dumps(made))
    assert again.training is train
    assert [p.requires_grad for p in again.parameters()] == [
        p.requires_grad for p in made.parameters()
    ]
    assert source_of(again) == source_of(made)
    torch.testing.assert_close(again(x), made(x))
    file = io.BytesIO()
    torch.save(again.double(), file)
    file.seek(0)
    third = torch.load(file, weights_only=False)
    assert third(x.double()).dtype is torch.float64


def test_tied_weights_are_tied_in_pickles_and_copies() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(5, 3)
            self.head = torch.nn.Linear(3, 5, bias=False)
            self.head.weight = self.table.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.table(x))

    net, x = Tied().eval(), torch.tensor([1, 2])
    made = to_torch(regraft.capture(net, (x,)))
    assert made.state_dict().keys() == net.state_dict().keys()
    for other in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        assert len(list(other.parameters())) == 1
        with torch.no_grad():
            other.table.weight.mul_(2)
        torch.testing.assert_close(other(x), net(x) * 4)
    torch.testing.assert_close(made(x), net(x))


def test_functional_calls_take_other_parameters() -> None:
    net, made, x = _regular()
    others = {name: parameter * 0.5 for name, parameter in made.named_parameters()}
    torch.testing.assert_close(
        torch.func.functional_call(made, others, (x,)),
        torch.func.functional_call(net, others, (x,)),
    )

    def loss(parameters: dict[str, torch.Tensor], one: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(made, parameters, (one[None],)).square().mean()

    parameters = {name: parameter.detach() for name, parameter in made.named_parameters()}
    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    assert per_sample["body.0.weight"].shape == (2, 6, 3, 3, 3)


def test_autocast_follows_the_original() -> None:
    net, made, x = _regular()
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = made(x), net(x)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)


def test_parts_move_between_devices_and_types() -> None:
    _, made, x = _regular()
    half = copy.deepcopy(made).to(torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half(x.bfloat16()).dtype == torch.bfloat16
    assert half.to("meta")(x.bfloat16().to("meta")).device.type == "meta"
    assert made.to("cpu")(x).device.type == "cpu"


def test_nested_arguments_under_export_and_compile() -> None:
    class Nested(torch.nn.Module):
        def forward(self, batch: Any, scale: float = 2.0) -> Any:
            return {"y": batch["x"] * scale, "z": [batch["rest"][0] + 1]}

    batch = {"x": torch.randn(3), "rest": [torch.randn(3)]}
    made = to_torch(regraft.capture(Nested().eval(), (batch,)))
    expected = made(batch)
    program = torch.export.export(made, (batch,))
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    for found in (program.module()(batch), compiled(batch)):
        torch.testing.assert_close(found["y"], expected["y"])
        torch.testing.assert_close(found["z"][0], expected["z"][0])
    again = regraft.capture(made, (batch,))
    torch.testing.assert_close(to_torch(again)(batch)["y"], expected["y"])


def test_two_processes_train_it_alike(tmp_path: Path) -> None:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this PyTorch has no gloo")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    worker = "tests.backends.torch.parallel_worker"
    subprocess.run(
        [sys.executable, *launch, "-m", worker, str(tmp_path)], cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True, timeout=240,
    )  # fmt: skip
    first, second, one = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("0", "1", "alone")
    )
    for name, tensor in one.items():
        assert torch.equal(first[name], second[name])
        # the mean of two halves is that of the whole, up to the rounding of some hundred terms
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-6)
