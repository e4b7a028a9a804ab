"""The function by which a generated file gives its model."""

from __future__ import annotations

import os
from pathlib import Path

from regraft.backends.torch.library.reading import assign, read_tensors
from regraft.backends.torch.library.scope import Scope as Model


def load(path: str | os.PathLike[str] | None = None) -> Model:
    """Returns the model with its weights, in evaluation mode.

    Args:
        path: The weights; default: the `.safetensors` file beside this one.
    """
    net = Model()
    net.eval()
    for name, tensor in read_tensors(path or Path(__file__).with_suffix(".safetensors")):
        assign(net, name, tensor)
    return net
