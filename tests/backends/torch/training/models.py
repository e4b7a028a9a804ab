"""Small modules, teachers and data for tests of training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.weights import ArrayWeight
from regraft.passes.recovery.data import Batch, Examples
from regraft.passes.recovery.objective import Mse, Term
from regraft.passes.recovery.task import Adapter, Schedule, Task
from tests.backends.torch.models import layer_inputs, layers

FIT = Term(Mse(), "out", "out")


def disturbed(scale: float = 0.2, seed: int = 0) -> Module:
    """Returns `layers` with noise on every weight: what a lossy pass leaves."""
    module = layers()
    rng = np.random.default_rng(seed)
    for name in list(module.weights):
        array = module.weights[name].numpy()
        noise = scale * array.std() * rng.standard_normal(array.shape)
        module.weights.set(name, ArrayWeight((array + noise).astype(np.float32)))
    return module


def data(count: int = 24, batch_size: int = 4, seed: int = 3) -> Examples:
    """Returns random inputs of `layers`."""
    batch = layer_inputs(count, seed=seed)
    items = [{name: array[i] for name, array in batch.items()} for i in range(count)]
    return Examples(items, batch_size)


class _Interrupted(Examples):
    """Examples whose reader is interrupted."""

    last: int

    def batches(self, first: int = 0) -> Iterator[Batch]:
        for number, batch in enumerate(super().batches(first), first):
            if number == self.last:
                raise KeyboardInterrupt
            yield batch


def interrupted(number: int) -> Examples:
    """Returns `data` that is interrupted where batch `number` is read."""
    whole = data()
    made = _Interrupted(whole.items, whole.batch_size)
    object.__setattr__(made, "last", number)
    return made


def held_out(count: int = 2) -> list[Batch]:
    """Returns batches that are not in `data`."""
    return [layer_inputs(8, seed=100 + i) for i in range(count)]


def task(steps: int = 40, adapter: Adapter | None = None, **options: object) -> Task:
    """Returns a task that fits `out`."""
    schedule = Schedule(steps, **{"learning_rate": 1e-2, **options})
    return Task((FIT,), schedule, adapter=adapter)


def error(module: Module, teacher: Module) -> float:
    """Returns the mean squared difference of outputs on inputs that nothing was fitted to."""
    pairs = [(evaluate(module, b)["out"], evaluate(teacher, b)["out"]) for b in held_out()]
    return float(np.mean([np.square(a - b).mean() for a, b in pairs]))
