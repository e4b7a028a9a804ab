"""Captures the model of a Hugging Face folder; its weights stay in their files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regraft.frontends.huggingface.checkpoint import Checkpoint, listed, open_checkpoint
from regraft.frontends.huggingface.classes import architecture_of, read_architecture
from regraft.frontends.huggingface.empty_model import (
    Bound,
    Expected,
    bind,
    build_empty,
    expected_tensors,
)
from regraft.frontends.huggingface.inputs import (
    DECODE,
    PAST,
    PREFILL,
    SEQ,
    TOTAL,
    example_of,
)
from regraft.frontends.torch.call import Import
from regraft.frontends.torch.capture import Capture, capture
from regraft.ir.derive import DerivedWeight
from regraft.ir.dims import Dim
from regraft.ir.freeze import restate
from regraft.ir.module import Module
from regraft.ir.steps import Cast, Source
from regraft.ir.weights import Weight

META = "huggingface"
"""Key of `Module.meta` under which stands what the way back needs."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A captured folder.

    Args:
        capture: The module and the model that it can be compared with.
        checkpoint: The files.
    """

    capture: Capture
    checkpoint: Checkpoint

    @property
    def module(self) -> Module:
        """The module of the IR."""
        return self.capture.module


def load_folder(
    folder: Path,
    *,
    form: str = PREFILL,
    trust_remote_code: bool = False,
    importers: Sequence[Import] = (),
) -> Loaded:
    """Captures the model of a folder in evaluation mode.

    Args:
        folder: A folder with `config.json` and safetensors files.
        form: `prefill`, or `decode` for a decoder that takes and returns a cache.
        trust_remote_code: Whether Python files of the folder may run.
        importers: Importers of overloads that regraft has none for.

    Raises:
        InputError: When files or tensors are missing, damaged, pickled or do not fit the config.
        UnsupportedError: For untrusted code, or calls without an IR form.
        UsageError: When the model has no such form.

    Cost: that of the export; no weight is read.
    """
    checkpoint = open_checkpoint(folder)
    architecture = read_architecture(folder, trust_remote_code=trust_remote_code)
    bound = bind(architecture, checkpoint)
    example = example_of(bound.model, folder, form)
    captured = capture(
        bound.model, (), example.kwargs, dynamic_shapes=example.axes, importers=importers
    )
    module = captured.module
    if form == DECODE:
        _state_lengths(module)
    names = _map_weights(module, bound)
    if bound.unexpected:
        module.warnings.append(
            f"{len(bound.unexpected)} tensors have no place in `{architecture.cls.__name__}` and "
            f"are left out: {listed(bound.unexpected)}"
        )
    narrowed = _retyped(module, bound.tensors, names)
    if narrowed:
        module.warnings.append(narrowed)
    module.meta[META] = {
        "folder": str(folder.resolve()),
        "config": dict(architecture.content),
        "names": names,
        "unread": {name: given for name, given in bound.names.items()
                   if module.weights.resolve(name) not in names},
        "form": form,
    }  # fmt: skip
    return Loaded(captured, checkpoint)


def _state_lengths(module: Module) -> None:
    """States what an export cannot: a cache may be empty, and a mask covers it and the new tokens.

    So the first tokens go through the same graph as the others, with a cache of length 0.
    """
    past, seq = (module.symbols.get(name) for name in (PAST, SEQ))
    if past is None:
        return
    length = Dim.of(replace(past, lo=0))
    restate(module, PAST, length)
    if TOTAL in module.symbols and seq is not None:
        total = length + Dim.of(seq)
        if isinstance(total, Dim):
            restate(module, TOTAL, total)


def _retyped(module: Module, tensors: Mapping[str, Weight], names: Mapping[str, str]) -> str:
    """Returns what the user should know of tensors that lose digits, nothing where none does."""
    for name, given in names.items():
        stored, used = tensors[given].dtype, module.weights[name].dtype
        if stored.is_float and used.bits < stored.bits:
            return (
                f"tensors such as `{given}` are {stored} in the files and the config says {used}, "
                "which they are rounded to, as transformers does it"
            )
    return ""


def _map_weights(module: Module, bound: Bound) -> dict[str, str]:
    """Replaces tensors by their places in the files; returns their names there.

    Names of weights that hold several names (tied ones) give the first that the checkpoint has.
    """
    store = module.weights
    members: dict[str, list[str]] = {name: [name] for name in store}
    for alias, target in store.aliases.items():
        members[target].append(alias)
    names: dict[str, str] = {}
    for name, group in members.items():
        given = next((bound.names[each] for each in group if each in bound.names), None)
        if given is None:
            continue  # the model computes it
        mapped, before = bound.tensors[given], store[name]
        if mapped.dtype is before.dtype:
            store.set(name, mapped)
        else:
            store.set(name, DerivedWeight(Cast(Source(name, mapped), before.dtype)))
        names[name] = given
    return names


def expected_of(
    config: Mapping[str, Any], folder: Path, *, trust_remote_code: bool = False
) -> Expected:
    """Returns the tensors that a folder with this config must hold; no memory is taken.

    Raises:
        InputError: When the config makes no model.
    """
    architecture = architecture_of(config, folder, trust_remote_code=trust_remote_code)
    return expected_tensors(build_empty(architecture))


def resolved_of(
    config: Mapping[str, Any], folder: Path, *, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Returns every value of a config, those that its class has by default included.

    Raises:
        InputError: When the config makes no model.
    """
    architecture = architecture_of(config, folder, trust_remote_code=trust_remote_code)
    known: dict[str, Any] = json.loads(architecture.config.to_json_string(use_diff=False))
    return {**known, **config}
