"""Passes that change the element type in which a module computes."""

from regraft.passes.precision.cast import Cast

PASSES = (Cast,)

__all__ = ["PASSES", "Cast"]
