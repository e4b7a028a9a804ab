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
from benchmarks.encoder import cosines, encoder, test_batch, training_batches
from regraft.backends.torch.executor import TorchExecutor
from regraft.passes.recovery.data import Batch, Data
from regraft.passes.recovery.fixed import FixedBatches

DROPPED = 2
"""The layer that is left out: the third of six."""

BEFORE = "before "
"""Prefix of weights before training, in what `--weights` names."""

RECOVER = "rate=3e-4, warmup=0.03, before=1, checkpoint-every={every}, refit-batches={looked_at}"


@dataclass(frozen=True, slots=True)
class Until:
    """Batches whose reading ends as an interruption ends it, where batch `number` is read."""

    data: FixedBatches
    number: int

    def batches(self, first: int = 0) -> Iterator[Batch]:
        for number, batch in enumerate(self.data.batches(first), first):
            if number == self.number:
                raise KeyboardInterrupt
            yield batch

    def numbers(self, first: int = 0) -> Iterator[int]:
        return self.data.numbers(first)


def pipeline(steps: int, batches: int, precision: str) -> str:
    """Returns the passes: short runs write checkpoints often, and look at few batches first."""
    is_short = steps < 100
    options = RECOVER.format(every=2 if is_short else 100, looked_at=3 if is_short else 24)
    return (
        f"drop-layers{{layers=[{DROPPED}]}},"
        f"recover{{steps={steps}, batches={batches}, precision={precision}, {options}}}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery_worker")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--folder", type=Path, help="holds the checkpoint")
    parser.add_argument("--stop-at", type=int, help="interrupt in this step, from 0")
    parser.add_argument("--weights", type=Path, help="where the trained weights go, .safetensors")
    parser.add_argument("--batches", type=int, default=1, help="per step, over all processes")
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()
    teacher = encoder()
    student, dropped = teacher.clone(), teacher.clone()
    regraft.apply(dropped, f"drop-layers{{layers=[{DROPPED}]}}", check="off")
    start = {name: dropped.weights[name] for name in dropped.weights}
    test = test_batch()
    executor = TorchExecutor()
    want = executor.run(teacher, [test])[0]["embedding"]
    before = cosines(executor.run(dropped, [test])[0]["embedding"], want)
    fixed = training_batches()
    data: Data = fixed
    if options.stop_at is not None:
        data = Until(fixed, options.stop_at * options.batches)
    wall, cpu = time.perf_counter(), time.process_time()
    _, record = regraft.apply(
        student, pipeline(options.steps, options.batches, options.precision), check="off",
        training=data, work_dir=options.folder,
    )  # fmt: skip
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
        "steps": record.stats["steps"],
        "threads": torch.get_num_threads(),
        "texts": len(test["input_ids"]),
        "batches": len(fixed.items),
        "tokens": sum(int(batch["attention_mask"].sum()) for batch in fixed.items),
        "digest": digest.hexdigest(),
    }
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
