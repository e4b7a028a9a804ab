"""Reproducers: a folder that replays the failing rest of a pipeline.

`module.rg` (the module before the failing pass, weights inline when small), `samples/*.npz`, and
`pipeline.txt`; `regraft opt FOLDER/module.rg --passes "$(cat FOLDER/pipeline.txt)"` replays it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from regraft.ir.module import Module
from regraft.ir.text import print_module
from regraft.passes.check.samples import Sample


def write_reproducer(
    module: Module, samples: Sequence[Sample], pipeline: str, parent: Path | None
) -> Path:
    """Writes a reproducer folder and returns its path.

    Args:
        module: The module before the failing pass.
        samples: Samples on which it fails.
        pipeline: The rest of the pipeline, the failing pass first.
        parent: Folder to create it in; default: a new temporary folder.
    """
    if parent is None:
        parent = Path(tempfile.mkdtemp(prefix="regraft-"))
    folder = parent / "reproducer"
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    (folder / "module.rg").write_text(print_module(module))
    (folder / "pipeline.txt").write_text(pipeline + "\n")
    for i, sample in enumerate(samples):
        arrays = {k: v for k, v in sample.inputs.items() if isinstance(v, np.ndarray)}
        np.savez(folder / "samples" / f"{i}.npz", **arrays)
    return folder
