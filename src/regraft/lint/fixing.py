"""`lint --fix`: the model converted once more, with the pass that mends quantized graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regraft.conversion import convert
from regraft.conversion_options import ConvertOptions
from regraft.emission import model_file
from regraft.pipelines import DEFAULT_PASSES
from regraft.plugins import Extensions

PASSES = f"mend-quantized,{DEFAULT_PASSES}"


def write_fixed(
    source: Any, out: Path, target: str, extensions: Extensions, *, force: bool = False
) -> Path:
    """Writes a model without the traps that passes can mend; returns its file.

    Args:
        source: The model.
        out: A folder, or a file with a suffix.
        target: Where it is to run.
        extensions: Operators, those of plugins among them.
        force: Replace an existing output.

    Raises:
        RegraftError: As `convert` does.
    """
    options = ConvertOptions(target=target, passes=PASSES, extensions=extensions, force=force)
    convert(source, out, options)
    return out if out.suffix else out / model_file(target)
