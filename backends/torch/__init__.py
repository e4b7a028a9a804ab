"""Emits modules as PyTorch source and runs them: a trainable `nn.Module` from an IR module.

Importing this package imports torch; `regraft.to_torch` does so on first use.
"""

from __future__ import annotations

from importlib.util import find_spec

from regraft.ir.errors import UnsupportedError

if find_spec("torch") is None:
    raise UnsupportedError(
        "PyTorch is not installed", hint="install it: `pip install regraft[torch]`"
    )

from regraft.backends.torch.build import source_of, to_torch  # they need torch
from regraft.backends.torch.read_back import read_back
from regraft.backends.torch.save import save_torch

__all__ = ["read_back", "save_torch", "source_of", "to_torch"]
