"""Mixtures of experts: made from feed-forward blocks."""

from regraft.passes.experts.upcycle_ffn import UpcycleFfn
from regraft.passes.protocol import Pass

PASSES: tuple[type[Pass], ...] = (UpcycleFfn,)
