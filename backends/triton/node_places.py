"""Where a model has a node, as packages say it: nothing of the machine that wrote them."""

from __future__ import annotations

import re

from regraft.backends.torch.naming import plain_text
from regraft.ir.graph import Node

_KIND = re.compile(r"[a-z]{2,}:")
"""`torch:layers.0`, `onnx:/layers.0/Add`, `rule:fold`; what has none is a line of a file."""
_INSTALLED = re.compile(r".*[\\/](?:site|dist)-packages[\\/]")
_FOLDER = re.compile(r".*[\\/]")
_NUM_PARTS = 2


def place_of(node: Node) -> str:
    """Returns where a model has a node: of PyTorch the module and the line of its source.

    A file of an installed package is named from the package on, another one without its folder.
    """
    parts = (_without_folder(part) for part in node.loc[:_NUM_PARTS] if part)
    return ", ".join(map(plain_text, parts))


def comment_of(node: Node) -> str:
    """Returns the operator of a node and where the model has it."""
    place = place_of(node)
    return f"{node.op.name}{': ' + place if place else ''}"


def _without_folder(part: str) -> str:
    if _KIND.match(part):
        return part
    installed = _INSTALLED.match(part)
    if installed is not None:
        return part[installed.end() :].replace("\\", "/")
    return _FOLDER.sub("", part)
