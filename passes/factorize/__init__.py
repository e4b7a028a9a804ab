"""Matrices as products of smaller ones: low rank, blocks, trains of cores."""

from regraft.passes.factorize.factorize import Factorize
from regraft.passes.protocol import Pass

PASSES: tuple[type[Pass], ...] = (Factorize,)
