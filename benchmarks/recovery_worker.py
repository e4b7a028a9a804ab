"""One training run on the real encoder without its third layer, in a process of its own.

Prints one JSON document; under `torchrun`, the first process does.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

import regraft
from benchmarks.encoder import cosines, encoder, test_batch, training_data
from regraft.backends.torch.executor import TorchExecutor
from regraft.backends.torch.training import TorchTrainer
from regraft.ir.derive import source_names
from regraft.ir.module import Module
from regraft.ir.weights import Role
from regraft.passes.analysis.layers import Layer, repeated_layers
from regraft.passes.recovery.data import Batch, Data
from regraft.passes.recovery.objective import Mse, NormalizedMse, Term
from regraft.passes.recovery.task import Schedule, Task

DROPPED = 2
"""The layer that is left out: the third of six."""

BEFORE = "before "
"""Prefix of weights before training, in what `--weights` names."""

_BATCH = 8


@dataclass(frozen=True, slots=True)
class Until:
    """Data that ends a run, as an interruption does, where batch `number` is read."""

    data: Data
    number: int

    def batches(self, first: int = 0) -> Iterator[Batch]:
        for number, batch in enumerate(self.data.batches(first), first):
            if number == self.number:
                raise KeyboardInterrupt
            yield batch


def layers_of(module: Module) -> list[Layer]:
    """Returns the layers, by structure."""
    return [layer for group in repeated_layers(module.graph) for layer in group.layers]


def task(student: Module, teacher: Module, steps: int) -> Task:
    """Returns the task: embeddings, and the states of the layers behind the one that is gone.

    The layers are trained; the tables of tokens, half of all parameters, stay.
    """
    own, theirs = layers_of(student), layers_of(teacher)
    del theirs[DROPPED]
    width = student.graph.outputs[0].shape
    if width is None or not isinstance(width[-1], int):
        raise TypeError("the embedding has no width")
    # the squared distance of embeddings of length one: 2 - 2 cosine
    terms = [Term(Mse(), "embedding", "embedding", weight=float(width[-1]))]
    terms += [
        Term(NormalizedMse(), a.output, (b.output,), mask="attention_mask")
        for a, b in zip(own[DROPPED:], theirs[DROPPED:], strict=True)
    ]
    names: dict[str, None] = {}
    for layer in own:
        for value in layer.constants:
            made = value.producer
            name = None if made is None else made.attrs.get("name")
            if name is not None and student.weights.role(name) is Role.PARAM:
                names.update(dict.fromkeys(source_names(name, student.weights[name])))
    schedule = Schedule(
        steps, learning_rate=2e-4, warmup_steps=min(50, steps // 10), batches_per_step=2,
        checkpoint_every=2 if steps < 20 else 50,
    )  # fmt: skip
    return Task(tuple(terms), schedule, tuple(names))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery_worker")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--folder", type=Path, help="holds the checkpoint")
    parser.add_argument("--stop-at", type=int, help="interrupt in this step, from 0")
    parser.add_argument("--weights", type=Path, help="where the trained weights go, .safetensors")
    options = parser.parse_args()
    teacher = encoder()
    student = teacher.clone()
    regraft.apply(student, f"drop-layers{{layers=[{DROPPED}]}}", check="off")
    start = {name: student.weights[name] for name in student.weights}
    run = task(student, teacher, options.steps)
    test = test_batch()
    executor = TorchExecutor()
    want = executor.run(teacher, [test])[0]["embedding"]
    before = cosines(executor.run(student, [test])[0]["embedding"], want)
    data: Data = training_data(_BATCH)
    if options.stop_at is not None:
        data = Until(data, options.stop_at * run.schedule.batches_per_step)
    wall, cpu = time.perf_counter(), time.process_time()
    report = TorchTrainer(folder=options.folder).distill(student, [teacher], run, data)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if int(os.environ.get("RANK", "0")) != 0:
        return 0
    after = cosines(executor.run(student, [test])[0]["embedding"], want)
    changed = [name for name in student.weights if student.weights[name] is not start[name]]
    arrays = {name: student.weights[name].numpy() for name in changed}
    if options.weights is not None:
        before_it = {BEFORE + name: start[name].numpy() for name in changed}
        contiguous = {n: np.ascontiguousarray(a) for n, a in {**arrays, **before_it}.items()}
        save_file(contiguous, options.weights)
    digest = hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays)))
    document = {
        "before": float(before.mean()),
        "before_worst": float(before.min()),
        "after": float(after.mean()),
        "after_worst": float(after.min()),
        "seconds": wall,
        "cpu_seconds": cpu,
        "steps": report.steps,
        "threads": torch.get_num_threads(),
        "texts": len(test["input_ids"]),
        "digest": digest.hexdigest(),
    }
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
