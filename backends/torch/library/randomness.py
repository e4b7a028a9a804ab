"""Random numbers that are the same at each run."""

from __future__ import annotations

import torch


def seeded(seed: int, device: torch.device) -> torch.Generator:
    """Returns a generator of its own for an operator that states a seed."""
    return torch.Generator(device).manual_seed(seed)
