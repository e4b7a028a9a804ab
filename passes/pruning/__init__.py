"""Structured pruning: plans over coupled axes, criteria, budgets, slicing."""

from regraft.passes.protocol import Pass
from regraft.passes.pruning.ablate import Ablate
from regraft.passes.pruning.prune import Prune

__all__ = ["PASSES", "Ablate", "Prune"]

PASSES: tuple[type[Pass], ...] = (Prune, Ablate)
