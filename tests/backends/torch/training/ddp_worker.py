"""One process of a run under `torchrun`: distils, and every process writes what it has then."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regraft.backends.torch.training import TorchTrainer, processes, shards
from regraft.passes.recovery.task import Lora
from tests.backends.torch.models import layers
from tests.backends.torch.training.models import data, disturbed, interrupted, task

_divide = shards.divide
_held: list[float] = []


def _watched(net: Any, device: str, processes: int) -> None:
    """Divides, and notes the fraction of the numbers that this process holds then."""
    _divide(net, device, processes)
    sizes = [(p.to_local().numel(), p.numel()) for p in net.parameters()]
    _held.append(sum(own for own, _ in sizes) / sum(whole for _, whole in sizes))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--shards", action="store_true")
    parser.add_argument("--stop-at", type=int, help="interrupt where this batch is read")
    options = parser.parse_args()
    torch.set_num_threads(1)
    setattr(processes, "divide", _watched)  # noqa: B010  # no attribute that mypy knows of
    module = disturbed()
    adapter = Lora(rank=2) if options.lora else None
    run = task(10, adapter, batches_per_step=4, warmup_steps=2, checkpoint_every=5)
    trainer = TorchTrainer(folder=options.folder / "run", progress=False, shards=options.shards)
    examples = data() if options.stop_at is None else interrupted(options.stop_at)
    try:
        report = trainer.distill(module, [layers()], run, examples)
    except KeyboardInterrupt:
        return
    arrays: dict[str, Any] = {name: module.weights[name].numpy() for name in module.weights}
    arrays |= {"losses": report.losses, "held": _held or [1.0]}
    np.savez(options.folder / f"rank{os.environ.get('RANK', '0')}.npz", **arrays)


if __name__ == "__main__":
    main()
