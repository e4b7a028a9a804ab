"""Training after `sparsify` and `factorize`: zeros stay, factors learn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import regraft
from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.errors import UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.verify import verify
from regraft.passes.protocol import Context
from regraft.passes.recovery.data import Batch
from regraft.passes.recovery.fading import rising_shares
from regraft.passes.recovery.fixed import FixedBatches
from regraft.passes.recovery.task import Dsee
from regraft.passes.recovery.zeros import sparse_tensors
from regraft.passes.sparsity.sparsify import Sparsify
from tests.passes.depth.stacks import samples, stack

torch = pytest.importorskip("torch", reason="recovery trains with PyTorch")

from regraft.backends.torch.training.adapters import attach, fold  # noqa: E402


def lost(module: Module) -> float:
    rng = np.random.default_rng(9)
    held_out = {"h0": rng.standard_normal((64, 8)).astype(np.float32)}
    got, want = (evaluate(each, held_out)["y"] for each in (module, stack(3)))
    return float(np.square(got - want).sum() / np.square(want).sum())


@pytest.mark.parametrize("adapter", ["none", "spp"])
def test_recovery_leaves_zeros_at_zero_and_brings_the_outputs_nearer(adapter: str) -> None:
    plain = stack(3)
    Sparsify(pattern="2:4", method="wanda").run(
        plain, Context(samples=samples(), activations=OrtActivations())
    )
    module = stack(3)
    options = f"steps=150,rate=5e-3,adapter={adapter}"
    regraft.apply(
        module, f"sparsify{{pattern=2:4,method=wanda}},recover{{{options}}}", check="off",
        samples=samples(), training=FixedBatches(samples()),
    )  # fmt: skip
    for name in plain.weights:
        before, after = (each.weights[name].numpy() for each in (plain, module))
        if before.ndim == 2 and name != "head":
            np.testing.assert_array_equal(after[before == 0], 0)
            assert (before == 0).mean() == 0.5
            assert np.abs(after - before).max() > 1e-4
    assert lost(module) < 0.8 * lost(plain)


def test_an_adapter_that_fills_zeros_is_refused() -> None:
    with pytest.raises(UsageError, match=r"is sparse, and `lora` adds to its zeros"):
        regraft.apply(
            stack(3), "sparsify{pattern=2:4,method=magnitude},recover{steps=2,adapter=lora}",
            check="off", samples=samples(2), training=FixedBatches(samples(2)),
        )  # fmt: skip


def test_low_rank_and_a_few_numbers_on_a_sparse_matrix_fold_to_their_sum() -> None:
    weight = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    weight = weight * (torch.rand(24, 16, generator=torch.Generator().manual_seed(1)) < 0.3)
    net = torch.nn.Linear(16, 24, bias=False)
    net.weight = torch.nn.Parameter(weight.clone())
    rate = 1 - float((weight != 0).float().mean())
    attach(net, ["weight"], Dsee(rank=2, kept=9), seed=0)
    delta = net.parametrizations.weight[0]
    x = torch.randn(5, 16)
    # training starts at the sparse matrix
    torch.testing.assert_close(net(x), x @ weight.T, rtol=0, atol=0)
    for parameter in (delta.u, delta.v, delta.s):
        torch.nn.init.normal_(parameter)
    base = net.parametrizations.weight.original
    # nnz <= (1 - s) n + nnz(S), beside the factors, before it is folded
    held = torch.count_nonzero(base) + torch.count_nonzero(delta.s)
    assert held <= round((1 - rate) * weight.numel()) + 9
    assert delta.u.numel() + delta.v.numel() == 2 * (24 + 16)
    want = net(x).detach()
    fold(net, ["weight"])
    torch.testing.assert_close(net(x).detach(), want, rtol=0, atol=1e-6)


def test_dsee_recovers_more_than_the_sparse_weights_had() -> None:
    plain, module = stack(3), stack(3)
    regraft.apply(plain, "sparsify{pattern=2:4,method=wanda}", check="off", samples=samples())
    regraft.apply(
        module, "sparsify{pattern=2:4,method=wanda},recover{steps=100,rate=5e-3,adapter=dsee}",
        check="off", samples=samples(), training=FixedBatches(samples()),
    )  # fmt: skip
    assert lost(module) < 0.5 * lost(plain)
    # only the head, which training left alone as nothing before it lacked, may still be sparse
    assert not {name for name in sparse_tensors(module) if name != "head"}


@pytest.mark.parametrize("method", ["whitened", "block-shuffle", "mpo"])
def test_factors_are_trained(method: str) -> None:
    passes = f"factorize{{method={method},rank=2,blocks=2}}"
    plain, module = stack(3), stack(3)
    regraft.apply(plain, passes, check="off", samples=samples())
    regraft.apply(
        module, f"{passes},recover{{steps=150,rate=5e-3}}", check="off", samples=samples(),
        training=FixedBatches(samples()),
    )  # fmt: skip
    assert sorted(module.weights) == sorted(plain.weights)
    assert lost(module) < 0.8 * lost(plain)


def test_parameters_of_a_captured_model_keep_their_names_and_are_sparse() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
    module = regraft.capture(net.eval(), (torch.randn(4, 16),))
    regraft.apply(module, "canonicalize,fuse,sparsify{pattern=2:4,method=magnitude}", check="off")
    state = regraft.to_torch(module).state_dict()
    assert set(state) == set(net.state_dict())
    for name in ("0.weight", "2.weight"):
        rows = state[name].reshape(-1, 4)  # [out, in]: groups of consecutive inputs
        assert ((rows != 0).sum(1) == 2).all()
        kept = state[name] != 0
        torch.testing.assert_close(state[name][kept], net.state_dict()[name][kept], rtol=0, atol=0)
    assert sparse_tensors(module) == ("0.weight", "2.weight")


def test_a_whole_matrix_fades_while_its_factors_are_trained() -> None:
    """Self-guided training: it begins at the dense model and ends at the factors alone."""
    passes = "factorize{method=block-shuffle,rank=2,blocks=2%s}"
    begun, plain, guided = stack(3), stack(3), stack(3)
    regraft.apply(begun, passes % ",blend=1", check="off")
    x = samples(1)[0]
    np.testing.assert_array_equal(evaluate(begun, x)["y"], evaluate(stack(3), x)["y"])
    regraft.apply(plain, passes % "", check="off")
    records = regraft.apply(
        guided, passes % ",blend=1" + ",recover{steps=150,rate=5e-3}", check="off",
        training=FixedBatches(samples()),
    )  # fmt: skip
    assert records[-1].stats["faded"] == len(rising_shares(begun)) > 0
    # no whole matrix is left, and no share
    assert sorted(guided.weights) == sorted(plain.weights)
    assert not rising_shares(guided)
    verify(guided)
    assert lost(guided) < 0.8 * lost(plain)


def test_an_interrupted_fading_ends_at_the_same_bits(tmp_path: Path) -> None:
    passes = (
        "factorize{method=svd,rank=2,blend=1},"
        "recover{steps=12,checkpoint-every=3,precision=fp32,refit=false}"
    )

    class Interrupted(FixedBatches):
        def batches(self, first: int = 0) -> Iterator[Batch]:
            for number, batch in enumerate(super().batches(first), first):
                if number == 8:
                    raise KeyboardInterrupt
                yield batch

    whole, cut, again = stack(3), stack(3), stack(3)
    regraft.apply(whole, passes, check="off", training=FixedBatches(samples()))
    with pytest.raises(KeyboardInterrupt):
        regraft.apply(
            cut, passes, check="off", training=Interrupted(samples()), work_dir=tmp_path
        )  # fmt: skip
    regraft.apply(again, passes, check="off", training=FixedBatches(samples()), work_dir=tmp_path)
    for name in whole.weights:
        np.testing.assert_array_equal(again.weights[name].numpy(), whole.weights[name].numpy())
