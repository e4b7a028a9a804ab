"""Losses of routers against their equations, counted over batches, and in runs."""

from __future__ import annotations

import numpy as np
import pytest

from regraft.backends.torch.training import TorchTrainer
from regraft.backends.torch.training.routing_losses import (
    StepCounts,
    balance,
    balanced_bias,
    choice_counts,
    margin_balance,
    router_z,
)
from regraft.ir.errors import UsageError
from regraft.ir.graph import Node
from regraft.ir.module import Module
from regraft.ir.ops import moe
from regraft.ir.weights import ArrayWeight
from regraft.passes.experts.adaptive import margins_of
from regraft.passes.experts.trained import weights_of_experts
from regraft.passes.experts.upcycle_ffn import UpcycleFfn
from regraft.passes.protocol import Context
from regraft.passes.recovery.fixed import FixedBatches
from regraft.passes.recovery.objective import Balance, MarginBalance, Mse, RouterZ, Term
from regraft.passes.recovery.task import Schedule, Task
from tests.backends.torch.models import torch
from tests.passes.experts.test_upcycle_ffn import block

E = 6


def _scores(seed: int, tokens: int = 40, dtype: object = torch.float64) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((tokens, E))).to(dtype)


@pytest.mark.parametrize("top_k", [1, 2])
def test_balance_is_switch_load_balancing(top_k: int) -> None:
    scores = _scores(0).reshape(2, 20, E)
    rows = scores.reshape(-1, E).numpy()
    soft = np.exp(rows) / np.exp(rows).sum(-1, keepdims=True)
    chosen = np.argsort(-rows, -1)[:, :top_k]
    shares = np.bincount(chosen.ravel(), minlength=E) / chosen.size
    want = E * (shares * soft.mean(0)).sum()
    assert float(balance(scores, top_k)) == pytest.approx(want, rel=1e-12)


def test_balance_of_experts_of_several_sizes() -> None:
    """HMoE: an expert's share counts as much as it is larger than the mean."""
    scores, sizes = _scores(5), np.arange(1.0, E + 1)
    soft = np.exp(scores.numpy()) / np.exp(scores.numpy()).sum(-1, keepdims=True)
    chosen = np.argsort(-scores.numpy(), -1)[:, :2]
    shares = np.bincount(chosen.ravel(), minlength=E) / chosen.size * sizes / sizes.mean()
    want = E * (shares * soft.mean(0)).sum()
    assert float(balance(scores, 2, sizes=tuple(sizes))) == pytest.approx(want, rel=1e-12)
    assert float(balance(scores, 2, sizes=(3.0,) * E)) == pytest.approx(float(balance(scores, 2)))


def test_small_experts_are_favoured() -> None:
    even = torch.zeros(1, E, dtype=torch.float64).repeat(E, 1)
    scores = (even + 1e-3 * torch.eye(E, dtype=torch.float64)).requires_grad_()
    balance(scores, 1, sizes=tuple(range(1, E + 1))).backward()
    assert scores.grad is not None
    slopes = scores.grad.sum(0)
    assert slopes[0] < 0 < slopes[-1]


def test_balance_is_one_where_choices_are_even() -> None:
    scores = 5 * torch.eye(E, dtype=torch.float64).repeat(3, 1)
    assert float(balance(scores, 1)) == pytest.approx(1.0, rel=1e-12)


def test_balance_of_positions_that_count() -> None:
    scores, mask = _scores(1), torch.arange(40) < 25
    got = float(balance(scores, 2, mask))
    assert got == pytest.approx(float(balance(scores[:25], 2)), rel=1e-12)


def test_global_counts_of_one_batch_change_nothing() -> None:
    scores = _scores(2)
    one = float(balance(scores, 2, None, StepCounts(1)))
    assert one == pytest.approx(float(balance(scores, 2)), rel=1e-12)


def test_global_counts_are_those_of_the_batches_together() -> None:
    parts = [_scores(seed).requires_grad_() for seed in range(3)]
    counts = StepCounts(3)
    for part in parts:
        last = balance(part, 2, None, counts)
    whole = choice_counts(torch.cat(parts), 2)
    shares = (whole / whole.sum()).double()
    want = E * (shares * parts[-1].softmax(-1).mean(0)).sum()
    assert last.item() == pytest.approx(want.item(), rel=1e-6)
    # the next step counts anew
    again = balance(parts[0], 2, None, counts)
    assert again.item() == pytest.approx(balance(parts[0], 2).item(), rel=1e-6)


def test_held_out_batches_belong_to_no_step() -> None:
    counts = StepCounts(2)
    balance(_scores(0), 2, None, counts)
    with torch.no_grad():
        balance(_scores(1), 2, None, counts)
    got = counts.add(torch.zeros(E))
    torch.testing.assert_close(got, choice_counts(_scores(0), 2))


def test_balance_pushes_scores_of_crowded_experts_down() -> None:
    scores = (_scores(3) + torch.tensor([3.0, 0, 0, 0, 0, 0])).requires_grad_()
    balance(scores, 1).backward()
    assert scores.grad is not None
    assert scores.grad[:, 0].sum() > 0
    assert (scores.grad[:, 1:].sum(0) < 0).all()


def test_router_z_is_the_squared_normalizer() -> None:
    scores = _scores(4)
    want = np.square(np.log(np.exp(scores.numpy()).sum(-1))).mean()
    assert float(router_z(scores)) == pytest.approx(want, rel=1e-12)


def test_a_bias_evens_out_a_skewed_stream() -> None:
    skew, bias = torch.linspace(0, 0.15, E), torch.zeros(E)
    loads = []
    for step in range(200):
        scores = torch.sigmoid(_scores(step, 4096, torch.float32) + skew)
        counts = choice_counts(scores + bias, 2)
        loads.append(counts / counts.mean())
        bias = balanced_bias(bias, counts, 0.001)
    assert loads[0].max() > 1.08  # there is something to even out
    assert torch.stack(loads[100:]).mean(0).max() <= 1.02
    assert max(float(load.max()) for load in loads[-20:]) <= 1.2


def _upcycled() -> tuple[Module, list[Node]]:
    module = block("relu")
    UpcycleFfn(experts=4, top_k=1, renormalize=False, lossy=True, router_std=0.5).run(
        module, Context()
    )
    return module, [node for node in module.graph if node.op is moe.moe]


@pytest.mark.parametrize("scope", ["batch", "global"])
def test_a_run_with_balance_evens_out_the_choices(scope: str) -> None:
    module, (node,) = _upcycled()
    rng = np.random.default_rng(0)
    rows = [{"x": (rng.standard_normal((2, 20, 16)) + 1).astype(np.float32)} for _ in range(8)]
    scores = Term(Balance(1, scope), student=node.inputs[1], weight=1.0)
    schedule = Schedule(60, learning_rate=3e-2, batches_per_step=2)
    terms = (scores, Term(RouterZ(), student=node.inputs[1], weight=1e-3))
    router = node.inputs[1].producer.inputs[1].producer.attrs["name"]
    report = TorchTrainer(progress=False).distill(
        module, [], Task(terms, schedule, trained=(router,)), FixedBatches(rows)
    )
    assert report.losses[0] > 1.5
    assert np.mean(report.losses[-10:]) < 1.1


def test_adapters_and_routers_are_trained_alone() -> None:
    """PESC: the block that adapters read stays as it is."""
    module = block("relu")
    UpcycleFfn(experts=4, top_k=2, method="adapter", rank=3).run(module, Context())
    names = weights_of_experts(module)
    assert len(names) == 3  # up and down of the adapters, and the router
    before = {name: module.weights[name].numpy().copy() for name in module.weights}
    rng = np.random.default_rng(0)
    rows = [{"x": rng.standard_normal((2, 20, 16)).astype(np.float32)} for _ in range(4)]
    target = module.clone()
    for name in target.weights:
        if name not in names:
            array = target.weights[name].numpy()
            target.weights.set(name, ArrayWeight((array * 1.3).astype(array.dtype)))
    (output,) = module.graph.output_names
    term = Term(Mse(), student=output, teacher=output)
    report = TorchTrainer(progress=False).distill(
        module, [target], Task((term,), Schedule(30, learning_rate=1e-2), trained=names),
        FixedBatches(rows),
    )  # fmt: skip
    assert report.losses[-1] < 0.9 * report.losses[0]
    changed = {n for n in module.weights if (module.weights[n].numpy() != before[n]).any()}
    assert changed == set(names)


@pytest.mark.parametrize("is_masked", [False, True])
def test_margin_balance_counts_experts_above_their_threshold(is_masked: bool) -> None:
    margins = (_scores(7) / 4).reshape(2, 20, E)
    mask = torch.arange(40).reshape(2, 20) % 3 if is_masked else None
    rows = margins.reshape(-1, E).numpy()
    if mask is not None:
        rows = rows[mask.numpy().ravel() != 0]
    want = E * ((rows >= 0).mean(0) * rows.mean(0)).sum()
    assert float(margin_balance(margins, mask)) == pytest.approx(want, rel=1e-12)


def test_adaptive_experts_and_their_thresholds_are_trained() -> None:
    module = block("relu")
    UpcycleFfn(experts=4, method="lora", rank=3, select="adaptive", router_std=0.5).run(
        module, Context()
    )
    names = weights_of_experts(module)
    assert len(names) == 5  # up and down, the router, slope and offset of the threshold
    before = {name: module.weights[name].numpy().copy() for name in module.weights}
    rng = np.random.default_rng(0)
    rows = [{"x": rng.standard_normal((2, 20, 16)).astype(np.float32)} for _ in range(4)]
    target = module.clone()
    for name in target.weights:
        if name not in names:
            array = target.weights[name].numpy()
            target.weights.set(name, ArrayWeight((array * 1.3).astype(array.dtype)))
    (output,), (margins,) = module.graph.output_names, margins_of(module)
    terms = (
        Term(Mse(), student=output, teacher=output),
        Term(MarginBalance(), student=margins, weight=0.01),
    )
    report = TorchTrainer(progress=False).distill(
        module, [target], Task(terms, Schedule(30, learning_rate=1e-2), trained=names),
        FixedBatches(rows),
    )  # fmt: skip
    assert report.losses[-1] < 0.9 * report.losses[0]
    changed = {n for n in module.weights if (module.weights[n].numpy() != before[n]).any()}
    assert changed == set(names)


def test_balance_takes_no_teacher_and_no_label() -> None:
    for options in ({"teacher": "y"}, {"label": "labels"}):
        with pytest.raises(UsageError, match="takes no"):
            Term(Balance(2), student="y", **options)
