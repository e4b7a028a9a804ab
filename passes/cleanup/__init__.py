"""Cleanup passes: what every model needs before anything else looks at it."""

from regraft.passes.cleanup.canonicalize import Canonicalize
from regraft.passes.cleanup.fold_norms import FoldNorms

PASSES = (Canonicalize, FoldNorms)

__all__ = ["PASSES", "Canonicalize", "FoldNorms"]
