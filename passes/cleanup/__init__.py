"""Cleanup passes: what every model needs before anything else looks at it."""

from regraft.passes.cleanup.canonicalize import Canonicalize

PASSES = (Canonicalize,)

__all__ = ["PASSES", "Canonicalize"]
