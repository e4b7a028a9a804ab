"""Writes a module as a folder of `transformers`: config, safetensors in shards, tokenizer files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.backends.huggingface.companions import copy_companions
from regraft.backends.huggingface.experts import (
    FAMILIES,
    ExpertLayer,
    expert_config,
    expert_layers,
    expert_tensors,
    is_expert_tensor,
)
from regraft.backends.huggingface.plan import (
    Expected,
    Origin,
    Plan,
    check_complete,
    origin_of,
)
from regraft.backends.huggingface.recover import recover
from regraft.ir.module import Module
from regraft.ir.safetensors import write_safetensors
from regraft.ir.weights import Weight

MAX_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True, slots=True)
class Written:
    """What was written.

    Args:
        files: The files of the model.
        doubts: Tensors whose old values were written while the module holds something that was
            computed from them, with the reason; right only when running the model shows it.
    """

    files: tuple[Path, ...]
    doubts: Mapping[str, str]


Resolve = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Gives every value of a config, those that the class has by default included."""


def save_huggingface(
    module: Module, folder: Path, expected: Expected, *, max_shard_bytes: int = MAX_SHARD_BYTES,
    resolve: Resolve = dict,
) -> Written:  # fmt: skip
    """Writes config, weights and tokenizer files into a folder, tensor by tensor.

    The caller gives a temporary folder and renames it when all is well.

    Args:
        module: A module that came from a Hugging Face folder.
        folder: Where to write.
        expected: Says which tensors a model of a config wants.
        max_shard_bytes: Larger checkpoints are written in several files.
        resolve: Asked where the folder becomes one of another family, whose defaults differ.

    Raises:
        InputError: When the source folder is gone.
        UnsupportedError: When the module is no model of its family any more; says precisely why.
        OSError: When the disk is full or the folder cannot be written.
    """
    origin = origin_of(module)
    before = expected(origin.config)
    shapes = {name: before.shapes[name] for name in origin.names}
    layers = expert_layers(module, str(origin.config.get("model_type")))
    made = _made_anew(origin, layers)
    recovery = recover(module, shapes, frozenset(name for each in layers for name in each.names))
    plan = Plan(origin, before, recovery)
    config, tensors = plan.make()
    if layers:
        config = expert_config(resolve(config), layers, int(config["num_hidden_layers"]))
        tensors.update(made)
    check_complete(expected, config, tensors)
    weights = dict(tensors.values())
    files = [*_write_shards(folder, weights, max_shard_bytes), folder / "config.json"]
    files[-1].write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    copy_companions(origin.folder, folder, code="auto_map" in config)
    doubts = {origin.names[n]: item.doubt for n, item in recovery.tensors.items() if item.doubt}
    doubts.update((origin.names[name], why) for name, why in recovery.folded.items())
    return Written(tuple(files), doubts)


def _made_anew(origin: Origin, layers: list[ExpertLayer]) -> dict[str, tuple[str, Weight]]:
    """Returns the tensors of experts; takes those of the source out of what is recovered."""
    if not layers:
        return {}
    by_number = {each.layer: each for each in layers}
    for names in (origin.names, origin.unread):
        for name in [each for each in names if is_expert_tensor(each, by_number)]:
            del names[name]
    kind = str(origin.config["model_type"])
    family = FAMILIES[kind][1]
    adds_shared = family.shared is not None and kind != family.kind
    return {
        name: (name, weight)
        for each in layers
        for name, weight in expert_tensors(each, family, adds_shared=adds_shared).items()
    }


def _write_shards(folder: Path, weights: Mapping[str, Weight], max_bytes: int) -> list[Path]:
    shards: list[dict[str, Weight]] = [{}]
    size = 0
    for name, weight in weights.items():
        if shards[-1] and size + weight.nbytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = weight
        size += weight.nbytes
    count = len(shards)
    files = [
        folder / (f"model-{i + 1:05}-of-{count:05}.safetensors" if count > 1
                  else "model.safetensors")
        for i in range(count)
    ]  # fmt: skip
    for file, shard in zip(files, shards, strict=True):
        write_safetensors(file, shard, {"format": "pt"})
    if count > 1:
        index = folder / "model.safetensors.index.json"
        total = sum(weight.nbytes for weight in weights.values())
        places = {n: file.name for file, shard in zip(files, shards, strict=True) for n in shard}
        content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        index.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        files.append(index)
    return files
