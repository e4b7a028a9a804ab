"""One loop that trains the small models: one thread, seeds by step, exact resumption.

One thread, because the result then does not depend on how many cores a machine has.
"""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

Loss = Callable[[nn.Module, int, int], Tensor]
"""(model, seed, step) -> the loss of the batch of this step."""

_STATE = "training.pt"


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast: linear warmup, then half a cosine to zero.

    Args:
        steps: Updates.
        learning_rate: The highest, of matrices inside of layers with Muon, of everything else
            without.
        warmup: Steps until it is reached.
        optimizer: `muon` orthogonalizes the updates of matrices inside of layers, and takes AdamW
            for the rest (Jordan et al., Muon, 2024); it needs two thirds of AdamW's steps here.
        rest_learning_rate: AdamW's, for the rest.
        checkpoint_every: Steps between checkpoints.
        weight_decay: AdamW's, of all matrices and tables, not of gains and biases.
    """

    steps: int
    learning_rate: float
    warmup: int = 50
    optimizer: Literal["adamw", "muon"] = "adamw"
    rest_learning_rate: float = 3e-3
    checkpoint_every: int = 100
    weight_decay: float = 0.0

    def factor(self, step: int) -> float:
        """Returns what the learning rate of a step is multiplied by."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return (1 + math.cos(math.pi * (step - self.warmup) / (self.steps - self.warmup))) / 2


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of a training.

    Args:
        loss: Of the last batch.
        cpu_s: Processor time.
    """

    loss: float
    cpu_s: float

    def to_json(self) -> str:
        """Returns it as JSON."""
        return json.dumps(asdict(self))


def train(net: nn.Module, loss: Loss, schedule: Schedule, seed: int, folder: Path) -> Trained:
    """Trains a model in place; a run that was stopped goes on where it was.

    Args:
        net: The model.
        loss: Its loss on the batch of a step.
        schedule: How long and how fast.
        seed: Seed of the batches.
        folder: Where checkpoints go; they are removed at the end.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _train(net.train(), loss, schedule, seed, folder)
    finally:
        torch.set_num_threads(before)
        net.eval()


def _train(net: nn.Module, loss: Loss, schedule: Schedule, seed: int, folder: Path) -> Trained:
    optimizers = _optimizers(net, schedule)
    rates = [[group["lr"] for group in each.param_groups] for each in optimizers]
    state = folder / _STATE
    first, cpu_s, last = 0, 0.0, math.nan
    if state.is_file():
        kept = torch.load(state, weights_only=True)
        first, cpu_s, last = kept["step"], kept["cpu_s"], kept["loss"]
        net.load_state_dict(kept["net"])
        for each, content in zip(optimizers, kept["optimizers"], strict=True):
            each.load_state_dict(content)
    start = time.process_time()
    for step in range(first, schedule.steps):
        found = loss(net, seed, step)
        found.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for each, own in zip(optimizers, rates, strict=True):
            for group, rate in zip(each.param_groups, own, strict=True):
                group["lr"] = rate * schedule.factor(step)
            each.step()
            each.zero_grad()
        last = found.item()
        if (step + 1) % schedule.checkpoint_every == 0 and step + 1 < schedule.steps:
            spent = cpu_s + time.process_time() - start
            kept = {"step": step + 1, "cpu_s": spent, "loss": last, "net": net.state_dict(),
                    "optimizers": [each.state_dict() for each in optimizers]}  # fmt: skip
            _write(state, kept)
    state.unlink(missing_ok=True)
    return Trained(last, cpu_s + time.process_time() - start)


def _write(path: Path, content: Any) -> None:
    beside = path.with_suffix(".part")
    torch.save(content, beside)
    os.replace(beside, path)


def _optimizers(net: nn.Module, schedule: Schedule) -> list[torch.optim.Optimizer]:
    parameters = dict(net.named_parameters())
    inside = [
        p for name, p in parameters.items()
        if schedule.optimizer == "muon" and p.ndim == 2 and ".layer" in name
    ]  # fmt: skip
    chosen = {id(p) for p in inside}
    rest = [p for p in parameters.values() if id(p) not in chosen]
    rate = schedule.rest_learning_rate if inside else schedule.learning_rate
    groups = [
        {"params": [p for p in rest if (p.ndim > 1) == decays], "weight_decay": decay}
        for decays, decay in ((True, schedule.weight_decay), (False, 0.0))
    ]
    adam = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
    if not inside:
        return [adam]
    return [torch.optim.Muon(inside, lr=schedule.learning_rate, weight_decay=0.0), adam]
