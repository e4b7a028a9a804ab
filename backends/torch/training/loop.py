"""The one training loop: AdamW, schedule, accumulation, clipping, early stop, exact resumption."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regraft.backends.torch.tensors import tensor_from
from regraft.backends.torch.training.checkpoint import Facts, read_checkpoint, write_checkpoint
from regraft.backends.torch.training.frozen import Key
from regraft.backends.torch.training.orthogonal import turn_gradients
from regraft.backends.torch.training.processes import Group
from regraft.backends.torch.training.progress import shown_progress
from regraft.backends.torch.training.shards import (
    divided_like,
    load_state,
    put_together,
    whole,
    whole_state,
)
from regraft.ir.errors import TargetError
from regraft.passes.recovery.data import Batch, Data
from regraft.passes.recovery.fixed import Numbered
from regraft.passes.recovery.task import Precision, Schedule, Stop

Objective = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
"""(net, batch) -> the scalar that is made small."""

Prepare = Callable[[Key | None, Mapping[str, Tensor]], Mapping[str, Tensor]]
"""(key, batch) -> the batch with what the objective needs besides; same key, same batch."""

CHECKPOINT = "checkpoint.pt"


@dataclass(slots=True)
class History:
    """What a run has seen so far.

    Attributes:
        step: Updates made.
        losses: One per step.
        held_out: (step, loss on held-out batches).
        best: Smallest of these.
        stale: Looks since then.
        best_weights: Weights at that time, kept where training may stop early.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    best: float = float("inf")
    stale: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run happens.

    Args:
        device: `cpu`, `cuda`, …
        group: The processes that share it.
        folder: Holds its checkpoint; None for none.
        progress: Whether a terminal shows it.
    """

    device: str = "cpu"
    group: Group = field(default_factory=Group)
    folder: Path | None = None
    progress: bool = True


class Loop:
    """A run over one net.

    Args:
        net: Parameters that require gradients are trained, in place.
        objective: What is made small.
        schedule: How long and how fast.
        data: Batches.
        place: Where.
        held_out: Batches that early stopping looks at.
        label: Name of the run.
        facts: What else tells this run from others.
        prepare: Called with every batch on its way to the objective.
        before_step: Called with the number of every step before it, and at the end with theirs.
    """

    def __init__(
        self,
        net: nn.Module,
        objective: Objective,
        schedule: Schedule,
        data: Data,
        place: Place,
        *,
        held_out: Sequence[Batch] = (),
        label: str = "training",
        facts: Facts | None = None,
        prepare: Prepare = lambda key, batch: batch,
        before_step: Callable[[int], None] = lambda step: None,
    ) -> None:
        torch.manual_seed(schedule.seed)
        self.net = net.to(place.device)
        self._wrapped = place.group.wrap(net, place.device)  # parameters may be other ones then
        self.schedule = schedule
        self.history = History()
        self._objective = objective
        self._data = data
        self._place = place
        self._held_out = held_out
        self._label = label
        self._prepare = prepare
        self._before_step = before_step
        self._precision = _resolved(schedule.precision)
        self._local = place.group.share(schedule.batches_per_step)
        self._trained = {n: p for n, p in net.named_parameters() if p.requires_grad}
        if not self._trained:
            raise TargetError("nothing to train: no float parameter is left to the run")
        self._optimizer = self._adamw()
        self._facts = {
            **_schedule_facts(schedule), "precision": self._precision, **(facts or {}),
            **self._parameter_facts(),
        }  # fmt: skip

    def run(self) -> Stop:
        """Trains to the end, from the checkpoint where there is one; `history` says what happened.

        Raises:
            TargetError: When the loss is no number.
            UsageError: When the checkpoint is of another run.
        """
        group, schedule, history = self._place.group, self.schedule, self.history
        self._facts["data"] = _digest(next(self._data.batches(0)))
        self._resume()
        batches = self._own_batches()
        enabled = self._place.progress and group.is_first
        self.net.train()
        try:
            with shown_progress(self._label, schedule.steps, enabled=enabled) as report:
                while history.step < schedule.steps and not self._is_stale():
                    loss = self._step(batches)
                    history.losses.append(loss)
                    history.step += 1
                    report(history.step, loss)
                    if self._held_out and history.step % schedule.evaluate_every == 0:
                        self._look()
                    every = schedule.checkpoint_every
                    if every and history.step % every == 0 and history.step < schedule.steps:
                        self._write()
        finally:
            self._before_step(schedule.steps)
            self.net.eval()
        self._write()
        if history.best_weights:
            self._load(history.best_weights)
        put_together(self.net)
        return "patience" if self._is_stale() else "steps"

    # -- one step -----------------------------------------------------------------------------

    def _step(self, batches: Iterator[Mapping[str, Tensor]]) -> float:
        """Updates the weights once; returns the loss, averaged over the step's batches."""
        self._before_step(self.history.step)
        for group in self._optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.history.step)
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float64)
        for idx in range(self._local):
            is_last = idx + 1 == self._local
            exchange = (
                nullcontext() if is_last else self._place.group.without_exchange(self._wrapped)
            )
            with exchange:
                with self._autocast():
                    # what is kept of a batch is computed as the rest is
                    loss = self._objective(self._wrapped, next(batches))
                (loss / self._local).backward()
            total += loss.detach().double().cpu() / self._local
        mean = self._place.group.mean(total)
        if not np.isfinite(mean):
            raise TargetError(
                f"{self._label}: the loss is {mean} at step {self.history.step + 1}",
                hint="lower the learning rate, or use `precision=fp32`",
            )
        if self.schedule.orthogonal:
            turn_gradients(self._trained.values())
        if self.schedule.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(list(self._trained.values()), self.schedule.max_grad_norm)
        self._optimizer.step()
        return mean

    def _adamw(self) -> torch.optim.AdamW:
        # as in most recipes, biases and gains are not drawn to zero
        weights = [p for p in self._trained.values() if p.ndim >= 2]
        others = [p for p in self._trained.values() if p.ndim < 2]
        decay = self.schedule.weight_decay
        groups = [(weights, decay), (others, 0.0)]
        return torch.optim.AdamW(
            [{"params": params, "weight_decay": each} for params, each in groups if params],
            lr=self.schedule.learning_rate, betas=self.schedule.betas,
        )  # fmt: skip

    def _autocast(self) -> Any:
        if self._precision == "fp32":
            return nullcontext()
        return torch.autocast(self._place.device.partition(":")[0], torch.bfloat16)

    def _own_batches(self) -> Iterator[Mapping[str, Tensor]]:
        """Yields this process's batches: every `size`-th of the steps that are left."""
        group, data = self._place.group, self._data
        first = self.history.step * self.schedule.batches_per_step
        numbers: Iterator[int | None] = (
            data.numbers(first) if isinstance(data, Numbered) else repeat(None)
        )
        # the data may end by raising: the number is drawn after the batch
        for place, (batch, number) in enumerate(zip(data.batches(first), numbers, strict=False)):
            if place % group.size == group.rank:
                key = None if number is None else ("training", number)
                yield self._prepare(key, self._moved(batch))

    def _moved(self, batch: Batch) -> dict[str, Tensor]:
        device = self._place.device
        return {name: tensor_from(np.asarray(item)).to(device) for name, item in batch.items()}

    # -- early stop ---------------------------------------------------------------------------

    def _look(self) -> None:
        """Measures the held-out batches and notes the best weights."""
        history = self.history
        with torch.no_grad(), self._autocast():
            batches = [
                self._prepare(("held out", number), self._moved(batch))
                for number, batch in enumerate(self._held_out)
            ]
            each = [float(self._objective(self.net, batch)) for batch in batches]
        loss = sum(each) / len(each)
        history.held_out.append((history.step, loss))
        history.stale += 1
        if loss < history.best:
            history.best, history.stale = loss, 0
            if self.schedule.patience is not None:
                history.best_weights = self._weights()

    def _is_stale(self) -> bool:
        patience = self.schedule.patience
        return patience is not None and self.history.stale >= patience

    # -- checkpoints --------------------------------------------------------------------------

    def _weights(self) -> dict[str, Tensor]:
        return {name: whole(p).cpu().clone() for name, p in self._trained.items()}

    def _load(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(divided_like(weights[name], parameter))

    def _write(self) -> None:
        group, folder, history = self._place.group, self._place.folder, self.history
        if folder is None:
            return
        content = {
            "weights": self._weights(),
            "optimizer": whole_state(self._optimizer),
            "random": torch.get_rng_state(),
            **{item.name: getattr(history, item.name) for item in fields(history)},
        }
        if group.is_first:
            write_checkpoint(folder / CHECKPOINT, self._facts, content)
        group.wait()

    def _resume(self) -> None:
        folder = self._place.folder
        found = None if folder is None else read_checkpoint(folder / CHECKPOINT, self._facts)
        if found is None:
            return
        self._load(found["weights"])
        load_state(self._optimizer, found["optimizer"])
        torch.set_rng_state(found["random"])
        for item in fields(self.history):
            setattr(self.history, item.name, found[item.name])

    def _parameter_facts(self) -> dict[str, str]:
        shapes = "; ".join(f"{name} {list(p.shape)}" for name, p in self._trained.items())
        return {"parameters": f"{len(self._trained)} ({_short(shapes.encode())})"}


def _resolved(precision: Precision) -> Precision:
    """Returns what `auto` stands for: bf16 where the processor multiplies such matrices."""
    if precision != "auto":
        return precision
    has = torch.cpu.get_capabilities()
    return "bf16" if has.get("avx512_bf16") or has.get("amx_bf16") else "fp32"


def _schedule_facts(schedule: Schedule) -> dict[str, str]:
    # checkpoints may come more often in the second part of a run
    names = [item.name for item in fields(schedule) if item.name != "checkpoint_every"]
    return {name: repr(getattr(schedule, name)) for name in names}


def _digest(batch: Batch) -> str:
    parts = [
        f"{name} {array.shape} {array.dtype}".encode() + np.ascontiguousarray(array).tobytes()
        for name, array in ((name, np.asarray(item)) for name, item in batch.items())
    ]
    return _short(b"".join(parts))


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]
