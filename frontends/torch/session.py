"""What all graphs of one import share, and the calls that have no IR form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from regraft.frontends.torch.call import ImportTable
from regraft.frontends.torch.locations import Locations
from regraft.frontends.torch.schemas import Schemas
from regraft.frontends.torch.sizes import Sizes
from regraft.ir.graph import Loc


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A call that could not be imported.

    Args:
        target: The overload.
        reason: Why.
        loc: Where the user wrote it.
    """

    target: str
    reason: str
    loc: Loc


@dataclass(slots=True)
class Session:
    """What the graphs of one import share.

    Attributes:
        table: Importers.
        sizes: Symbolic sizes.
        warnings: Sentences for the user.
        unsupported: Calls without an IR form, in order.
        decompose: Traces PyTorch's decomposition of a call, or returns None.
        opaque: Namespaces of operators that are carried through as they are.
    """

    table: ImportTable
    sizes: Sizes
    warnings: list[str]
    decompose: Callable[[torch.fx.Node], torch.fx.GraphModule | None]
    opaque: frozenset[str] = frozenset()
    schemas: Schemas = field(default_factory=Schemas)
    locations: Locations = field(default_factory=Locations)
    unsupported: list[Unsupported] = field(default_factory=list)
