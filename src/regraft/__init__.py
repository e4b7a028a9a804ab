"""regraft: a compiler for model surgery.

ONNX or PyTorch in, checked rewrites, ONNX Runtime, Triton or PyTorch out.

```python
import regraft

module = regraft.load("model.onnx")
regraft.apply(module, "canonicalize,fold-norms")
regraft.save(module, "out.onnx", target="ort-cpu")
```

The names below are loaded on first use, so that `import regraft` stays light.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if not (Path(__file__).parent / "ir").is_dir():
    raise ImportError(
        "`src/regraft/ir` is not a folder: the checkout did not make symbolic links\n"
        "hint: `git config core.symlinks true` and check out again"
    )

if TYPE_CHECKING:
    import regraft.testing as testing
    from regraft.api import ConvertResult, apply, compare, convert, load, measure, save
    from regraft.backends.torch import read_back, to_torch
    from regraft.ir.errors import RegraftError
    from regraft.ir.module import Module
    from regraft.ir.rewrite import Reject, Rule
    from regraft.passes.protocol import (
        Context,
        Exact,
        Lossy,
        Pass,
        PassResult,
        Skip,
        Within,
    )
    from regraft.plugins import Plugin
    from regraft.torch_sources import capture

_LAZY = {
    "Context": "regraft.passes.protocol",
    "ConvertResult": "regraft.api",
    "Exact": "regraft.passes.protocol",
    "Lossy": "regraft.passes.protocol",
    "Module": "regraft.ir.module",
    "Pass": "regraft.passes.protocol",
    "PassResult": "regraft.passes.protocol",
    "Plugin": "regraft.plugins",
    "RegraftError": "regraft.ir.errors",
    "Reject": "regraft.ir.rewrite",
    "Rule": "regraft.ir.rewrite",
    "Skip": "regraft.passes.protocol",
    "Within": "regraft.passes.protocol",
    "apply": "regraft.api",
    "capture": "regraft.torch_sources",
    "compare": "regraft.api",
    "convert": "regraft.api",
    "load": "regraft.api",
    "measure": "regraft.api",
    "read_back": "regraft.backends.torch",
    "save": "regraft.api",
    "to_torch": "regraft.backends.torch",
}

__all__ = [
    "Context",
    "ConvertResult",
    "Exact",
    "Lossy",
    "Module",
    "Pass",
    "PassResult",
    "Plugin",
    "RegraftError",
    "Reject",
    "Rule",
    "Skip",
    "Within",
    "__version__",
    "apply",
    "capture",
    "compare",
    "convert",
    "load",
    "measure",
    "read_back",
    "save",
    "testing",
    "to_torch",
]


def __getattr__(name: str) -> Any:
    if name == "testing":
        return importlib.import_module("regraft.testing")
    if name not in _LAZY:
        raise AttributeError(f"module `regraft` has no attribute `{name}`")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
