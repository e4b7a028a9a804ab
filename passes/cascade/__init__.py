"""Cascades: a cheap network answers what it is sure of, the one that it was made of the rest."""

from regraft.passes.cascade.cascade import Cascade
from regraft.passes.protocol import Pass

__all__ = ["PASSES", "Cascade"]

PASSES: tuple[type[Pass], ...] = (Cascade,)
