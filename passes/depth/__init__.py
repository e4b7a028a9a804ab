"""Depth: layers removed, fused into others, or tied; and what each of them does."""

from regraft.passes.depth.drop_layers import DropLayers
from regraft.passes.depth.fuse_layers import FuseLayers
from regraft.passes.depth.tie_layers import TieLayers
from regraft.passes.protocol import Pass

PASSES: tuple[type[Pass], ...] = (DropLayers, FuseLayers, TieLayers)
