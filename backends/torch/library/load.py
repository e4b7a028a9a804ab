"""The function by which a generated file gives its model."""

from __future__ import annotations

import os
from pathlib import Path

from regraft.backends.torch.library.reading import assign, check_all_read, read_tensors
from regraft.backends.torch.library.scope import Scope as Model


def load(path: str | os.PathLike[str] | None = None) -> Model:
    """Returns the model with its weights, in evaluation mode.

    Args:
        path: The weights; default: the `.safetensors` file beside this one.

    Raises:
        ValueError: When the file is no safetensors file, not whole, or that of another model.
    """
    net = Model()
    net.eval()
    file = path or Path(__file__).with_suffix(".safetensors")
    for name, tensor in read_tensors(file):
        assign(net, name, tensor)
    check_all_read(net, file)
    return net
