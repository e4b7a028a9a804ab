"""Axis coupling: which positions of which axes must go together, and which must stay."""

from regraft.passes.analysis.coupling.groups import Coupling, Group, PinnedSpace
from regraft.passes.analysis.coupling.spaces import Pin, Space

__all__ = ["Coupling", "Group", "Pin", "PinnedSpace", "Space"]
