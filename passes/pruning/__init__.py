"""Structured pruning: plans over coupled axes, criteria, budgets, slicing."""

from regraft.passes.protocol import Pass
from regraft.passes.pruning.prune import Prune

PASSES: tuple[type[Pass], ...] = (Prune,)
