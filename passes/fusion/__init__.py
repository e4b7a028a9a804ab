"""Raising: from spelled-out structure to canonical operators."""

from regraft.passes.fusion.fuse import Fuse

PASSES = (Fuse,)

__all__ = ["PASSES", "Fuse"]
