"""Equivalence folds: scales, shifts, orders and rotations moved between neighbours, exactly."""

from regraft.passes.equivalence.equalize import Equalize
from regraft.passes.protocol import Pass

__all__ = ["PASSES", "Equalize"]

PASSES: tuple[type[Pass], ...] = (Equalize,)
