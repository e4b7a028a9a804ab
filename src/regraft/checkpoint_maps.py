"""What a pruned output kept of its source's checkpoint, and tensors moved both ways.

An output folder records its recipe and its plan. The source is opened again and the passes run up
to `prune`: then every weight of the module leads back to tensors of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from regraft.ir.errors import InputError
from regraft.ir.safetensors import read_safetensors, write_safetensors
from regraft.ir.weights import ArrayWeight
from regraft.passes.protocol import Context
from regraft.passes.pruning import Prune
from regraft.passes.pruning.checkpoint import KeptTensor, kept_of_checkpoint, slice_checkpoint
from regraft.passes.pruning.plan import format_ranges
from regraft.passes.recipe import read_recipe
from regraft.plugins import Extensions
from regraft.rerun import Recorded
from regraft.sources import open_source

Array = np.ndarray[Any, Any]


def kept_of_output(
    recorded: Recorded, source: str | None, extensions: Extensions
) -> dict[str, KeptTensor]:
    """Returns what an output kept of every tensor of its source, by the tensor's name there.

    Args:
        recorded: The output.
        source: Where the source is; default: where it was.
        extensions: Passes and operators.

    Raises:
        InputError: When the output was not pruned, or its source is gone.
        UnsupportedError: When values were folded into each other before pruning.
    """
    recipe = read_recipe(recorded.out / "recipe.yaml", extensions.passes)
    if not any(isinstance(item, Prune) for item in recipe.passes):
        raise InputError(
            f"`{recorded.out}` was made without `prune`: it holds the checkpoint as it was",
            hint="give the output of a conversion with `prune{…}` among its passes",
        )
    module = open_source(_place(recorded, source), extensions).module
    target = str(recipe.settings.get("target", "ort-cpu"))
    ctx = Context(target=target, replay=recorded.decisions)
    dense = None
    for item in recipe.passes:
        if isinstance(item, Prune):
            dense = module.clone() if dense is None else dense
            item.run(module, ctx)
        elif dense is None:
            item.run(module, ctx)
    assert dense is not None, "there is a pass `prune`"
    kept = kept_of_checkpoint(dense.weights, module.weights)
    noted = module.meta.get("huggingface")
    names: Mapping[str, str] = noted["names"] if noted else {}
    # a library's checkpoint may have other names than its model
    for name, given in names.items():
        if name in kept and given not in kept:
            kept[given] = KeptTensor(given, kept[name].shape, kept[name].kept)
    return kept


def _place(recorded: Recorded, given: str | None) -> str:
    if given is not None:
        return given
    places = [Path(recorded.source), recorded.out.parent / recorded.source]
    for place in places:
        if place.exists():
            return str(place)
    raise InputError(
        f"the source `{recorded.source}` does not exist", hint="give its place with --source"
    )


def describe(kept: Mapping[str, KeptTensor]) -> list[dict[str, Any]]:
    """Returns one row per tensor: name, shapes, and kept positions of the axes that lost some."""
    return [
        {
            "name": item.name,
            "shape": list(item.shape),
            "new_shape": list(item.new_shape),
            "kept": {
                str(axis): format_ranges([int(i) for i in positions])
                for axis, positions in enumerate(item.kept)
                if len(positions) < item.shape[axis]
            },
        }
        for item in kept.values()
    ]


def cut_file(kept: Mapping[str, KeptTensor], source: Path, out: Path) -> int:
    """Cuts a checkpoint to what was kept; returns how many tensors became smaller.

    Raises:
        InputError: When a tensor has another shape than in the checkpoint that was pruned.
    """
    arrays = _read(source)
    result = slice_checkpoint(kept, arrays)
    _write(out, result)
    return sum(result[name].shape != array.shape for name, array in arrays.items())


def restore_file(kept: Mapping[str, KeptTensor], pruned: Path, into: Path, out: Path) -> int:
    """Writes the tensors of a pruned checkpoint to their places in a whole one.

    Returns how many tensors were written.

    Raises:
        InputError: When names or shapes are not those of the plan.
    """
    small, whole = _read(pruned), _read(into)
    unknown = [name for name in small if name not in whole]
    if unknown:
        shown = ", ".join(f"`{name}`" for name in unknown[:6])
        raise InputError(
            f"{len(unknown)} tensors of `{pruned}` are not in `{into}`: {shown}",
            hint="both need the names of the checkpoint that was pruned",
        )
    for name, array in small.items():
        target = whole[name].copy()
        item = kept.get(name)
        if item is None:
            item = KeptTensor(name, target.shape, tuple(np.arange(n) for n in target.shape))
        item.put(array, target)
        whole[name] = target
    _write(out, whole)
    return len(small)


def _read(path: Path) -> dict[str, Array]:
    return {name: weight.numpy() for name, weight in read_safetensors(path).tensors.items()}


def _write(path: Path, arrays: Mapping[str, Array]) -> None:
    write_safetensors(
        path, {name: ArrayWeight(np.ascontiguousarray(array)) for name, array in arrays.items()}
    )
