"""One process of a run under `torchrun`: distils, and the first writes the weights."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch

from regraft.backends.torch.training import TorchTrainer
from regraft.passes.recovery.task import Lora
from tests.backends.torch.models import layers
from tests.backends.torch.training.models import data, disturbed, task


def main(folder: Path, adapter: str) -> None:
    torch.set_num_threads(1)
    module = disturbed()
    run = task(10, Lora(rank=2) if adapter == "lora" else None, batches_per_step=4, warmup_steps=2)
    trainer = TorchTrainer(folder=folder / "run", progress=False)
    report = trainer.distill(module, [layers()], run, data())
    weights = {name: module.weights[name].numpy() for name in module.weights}
    np.savez(folder / f"rank{os.environ.get('RANK', '0')}.npz", losses=report.losses, **weights)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
