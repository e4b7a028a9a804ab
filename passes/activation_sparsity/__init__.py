"""Sparse activations: entries of what products read that go at run time."""

from regraft.passes.activation_sparsity.sparsify_activations import SparsifyActivations
from regraft.passes.protocol import Pass

PASSES: tuple[type[Pass], ...] = (SparsifyActivations,)
