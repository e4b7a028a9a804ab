"""Training of modules: the `Trainer` that passes are handed, and what it is made of."""

from __future__ import annotations

from regraft.backends.torch.training.trainer import TorchTrainer

__all__ = ["TorchTrainer"]
