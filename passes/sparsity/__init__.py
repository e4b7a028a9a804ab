"""Sparse weights: zeros in patterns or anywhere, chosen by what inputs say."""

from regraft.passes.protocol import Pass
from regraft.passes.sparsity.sparsify import Sparsify

PASSES: tuple[type[Pass], ...] = (Sparsify,)
