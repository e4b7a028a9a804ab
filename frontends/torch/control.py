"""Higher-order operators of an export: regions that are inlined."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from regraft.frontends.torch.call import UnsupportedCallError

if TYPE_CHECKING:
    from regraft.frontends.torch.importer import GraphImporter

_GRAD = 1  # arguments of `wrap_with_set_grad_enabled` before the region
_AUTOCAST = 4  # device, dtype, enabled, cache


def import_higher_order(importer: GraphImporter, node: torch.fx.Node, target: Any) -> Any:
    """Returns the results of a higher-order operator.

    Raises:
        UnsupportedCallError: For one that has no IR form.
    """
    name = target.name()
    if name == "wrap_with_set_grad_enabled":
        return inline(importer, node.args[_GRAD], node.args[_GRAD + 1 :])
    if name == "wrap_with_autocast":
        return inline(importer, node.args[_AUTOCAST], node.args[_AUTOCAST + 1 :])
    raise UnsupportedCallError(f"higher-order operator `{name}`")


def inline(importer: GraphImporter, region: Any, args: Any) -> Any:
    """Imports a region into the graph that calls it; aliases go through."""
    from regraft.frontends.torch.importer import GraphImporter, placeholders

    module = importer.convert(region)
    nested = GraphImporter(importer.session, importer.graph, module, importer.loc)
    nested.writes = importer.writes
    for placeholder, arg in zip(placeholders(module.graph), args, strict=True):
        nested.env[placeholder] = importer.convert(arg)
    return nested.run(module.graph)
