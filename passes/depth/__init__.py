"""Depth: whole layers removed."""

from regraft.passes.depth.drop_layers import DropLayers
from regraft.passes.protocol import Pass

PASSES: tuple[type[Pass], ...] = (DropLayers,)
