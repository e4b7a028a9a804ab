"""Topological order of ONNX nodes."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from regraft.frontends.onnx.importer import NameScope


def sorted_nodes(proto: onnx.GraphProto, scope: NameScope) -> Sequence[onnx.NodeProto]:
    """Returns the nodes in topological order."""
    return list(proto.node)
