"""Attention transfer: feature maps fitted to the softmax attention that they are about to replace.

Every branch stands beside its attention and reads the same queries, keys and values: what flows on
is the softmax's result (teacher forcing), and one forward pass fits all layers.

Source: Zhang et al., LoLCATs, 2024, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from regraft.ir.errors import UsageError
from regraft.ir.module import Module
from regraft.passes.linearization.place import Built, Place
from regraft.passes.linearization.weights import scores_of
from regraft.passes.protocol import Context
from regraft.passes.recovery.fixed import FixedBatches
from regraft.passes.recovery.objective import Kl, NormalizedMse, Term
from regraft.passes.recovery.task import Schedule, Task

Losses = Literal["output", "weights", "mixed", "hybrid"]

_NAME = "pass `linearize-attention`"
_CHECKPOINT_EVERY = 50
"""Updates, where the trainer has a folder for checkpoints."""


def transfer(
    module: Module, ctx: Context, places: Sequence[tuple[Place, Built]], *, steps: int,
    rate: float, loss: Losses, batches: int,
) -> dict[str, int | float]:  # fmt: skip
    """Fits the learned weights of branches, in place; returns what is counted.

    Args:
        module: Holds every branch beside its attention.
        ctx: Trainer and data.
        places: The attentions and their branches.
        steps: Updates.
        rate: The highest learning rate.
        loss: `output`: results of the linear branch; `weights`: its weights; `mixed`: the sum of
            the two; `hybrid`: results of both branches.
        batches: Batches per update.

    Raises:
        UsageError: Naming what is missing, or a method that has nothing to fit.
    """
    if ctx.trainer is None:
        raise UsageError(
            f"{_NAME}, option `steps`: it needs PyTorch",
            hint="install it: `pip install 'regraft[torch]'`",
        )
    if ctx.training is None and not ctx.samples:
        raise UsageError(
            f"{_NAME}, option `steps`: there is no data",
            hint="give `--train DATA` (or `training=` in Python)",
        )
    terms: list[Term] = []
    trained: dict[str, None] = {}
    for place, built in places:
        terms += _terms(place, built, loss)
        trained.update(dict.fromkeys(place.trained if loss == "hybrid" else built.trained))
    if not trained:
        raise UsageError(
            f"{_NAME}, option `steps`: the method learns nothing",
            hint="leave `steps` out; `recover` trains what is around it",
        )
    data = ctx.training or FixedBatches(ctx.samples, ctx.seed)
    schedule = Schedule(
        steps, rate, batches_per_step=batches, seed=ctx.seed, checkpoint_every=_CHECKPOINT_EVERY
    )
    task = Task(tuple(terms), schedule, tuple(trained))
    report = ctx.trainer.distill(module, [module], task, data)
    tail = report.losses[-max(1, len(report.losses) // 20) :]
    return {
        "steps": report.steps,
        "loss-first": report.losses[0] / len(places),
        "loss-last": sum(tail) / len(tail) / len(places),
    }


def _terms(place: Place, built: Built, loss: Losses) -> list[Term]:
    terms = []
    if loss in ("weights", "mixed"):
        if built.log_weights is None:
            raise UsageError(
                f"{_NAME}, option `loss`: the weights of this method are no distribution",
                hint="use `output`",
            )
        terms.append(Term(Kl(), built.log_weights, (scores_of(place),)))
    if loss != "weights":
        student = built.out if loss == "hybrid" else built.linear
        terms.append(Term(NormalizedMse(), student, (place.node.output,)))
    return terms
