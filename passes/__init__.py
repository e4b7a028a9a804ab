"""Passes, analyses, contracts, the manager and recipes: everything that rewrites a module."""

if __name__ != "regraft.passes":
    raise ImportError(
        f"`{__name__}` was imported as a top-level module\n"
        "hint: import it as `regraft.passes`; `src/regraft/passes` is a link to this folder"
    )

from regraft.passes import (
    activation_sparsity,
    attention,
    block_quantization,
    cascade,
    cleanup,
    depth,
    equivalence,
    experts,
    factorize,
    fusion,
    linearization,
    precision,
    pruning,
    quantization,
    sparsity,
)
from regraft.passes.legalize import Legalize
from regraft.passes.protocol import Pass
from regraft.passes.recovery.recover import Recover

PASSES: tuple[type[Pass], ...] = (
    *cleanup.PASSES,
    *fusion.PASSES,
    *precision.PASSES,
    *pruning.PASSES,
    *equivalence.PASSES,
    *quantization.PASSES,
    *block_quantization.PASSES,
    *depth.PASSES,
    *activation_sparsity.PASSES,
    *factorize.PASSES,
    *attention.PASSES,
    *linearization.PASSES,
    *sparsity.PASSES,
    *experts.PASSES,
    *cascade.PASSES,
    Recover,
    Legalize,
)
"""All passes, assembled by explicit concatenation."""
