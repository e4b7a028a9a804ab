"""Writes modules as checkpoint folders that `transformers` loads; needs neither it nor torch."""

from __future__ import annotations

from regraft.backends.huggingface.plan import Tensors
from regraft.backends.huggingface.save import Written, save_huggingface

__all__ = ["Tensors", "Written", "save_huggingface"]
