"""Reproducers: a folder that replays the failing rest of a pipeline.

`module.rg` and `module.rg.weights` (the module before the failing pass), `samples/*.npz` when there
were samples, `pipeline.txt`, and `README.txt` with the command that replays it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from regraft.ir.module import Module
from regraft.ir.text import write_module
from regraft.passes.check.samples import Sample


def write_reproducer(
    module: Module, samples: Sequence[Sample], pipeline: str, parent: Path | None
) -> Path:
    """Writes a reproducer folder and returns its path.

    Args:
        module: The module before the failing pass.
        samples: Samples on which it fails; none when a rewrite failed on generated inputs.
        pipeline: The rest of the pipeline, the failing pass first.
        parent: Folder to create it in; default: a new temporary folder.
    """
    folder = Path(tempfile.mkdtemp(prefix="reproducer-", dir=parent))
    write_module(module, folder / "module.rg")
    (folder / "pipeline.txt").write_text(pipeline + "\n")
    command = f'regraft opt {folder}/module.rg --passes "$(cat {folder}/pipeline.txt)" --check=each'
    if samples:
        (folder / "samples").mkdir()
        command += f" --inputs {folder}/samples"
    for i, sample in enumerate(samples):
        arrays = {k: v for k, v in sample.inputs.items() if isinstance(v, np.ndarray)}
        np.savez(folder / "samples" / f"{i}.npz", **arrays)  # type: ignore[arg-type]  # `allow_pickle` is typed
    (folder / "README.txt").write_text(
        f"{command}\n\nAdd --plugin FILE.py:NAME when a pass comes from a plugin.\n"
    )
    return folder
