"""What a module becomes as a folder of `transformers`: the new config and its tensors by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from regraft.backends.huggingface.config import ConfigChange
from regraft.backends.huggingface.families import FAMILIES
from regraft.backends.huggingface.family import Family
from regraft.backends.huggingface.recover import Recovery
from regraft.ir.errors import InputError, UnsupportedError
from regraft.ir.module import Module
from regraft.ir.safetensors import read_safetensors
from regraft.ir.types import DType
from regraft.ir.weights import Weight

META = "huggingface"
"""Key of `Module.meta` under which the frontend says what the folder was."""
_MAX_NAMED = 8
_DTYPES = {DType.F64: "float64", DType.F32: "float32", DType.F16: "float16", DType.BF16: "bfloat16"}


class Tensors(Protocol):
    """The tensors that a model of some config wants."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Sizes by name in the model."""

    @property
    def tied(self) -> Mapping[str, str]:
        """Names that stand for another one."""


Expected = Callable[[Mapping[str, Any]], Tensors]
"""Gives the tensors that a model of a config wants; builds nothing in memory."""


@dataclass(slots=True)
class Origin:
    """What the frontend noted.

    Attributes:
        folder: Where the model came from.
        config: The content of its `config.json`.
        names: Names in the checkpoint by name in the model.
        unread: Those of tensors that the captured form does not read.
    """

    folder: Path
    config: dict[str, Any]
    names: dict[str, str]
    unread: dict[str, str]


def origin_of(module: Module) -> Origin:
    """Returns what the frontend noted.

    Raises:
        InputError: When the source folder is gone.
        UnsupportedError: When the module came from elsewhere.
    """
    noted = module.meta.get(META)
    if noted is None:
        raise UnsupportedError(
            "the module does not come from a Hugging Face folder, so no config describes it",
            hint="load it from its folder: `regraft.load('folder')`",
        )
    folder = Path(noted["folder"])
    if not folder.is_dir():
        raise InputError(f"`{folder}`, from which the model was loaded, does not exist any more")
    return Origin(folder, dict(noted["config"]), dict(noted["names"]), dict(noted["unread"]))


class Plan:
    """What is written, found before anything is."""

    def __init__(self, origin: Origin, before: Tensors, recovery: Recovery) -> None:
        self.origin = origin
        self.before = before
        self.recovery = recovery
        self.kind = str(origin.config.get("model_type"))
        self.family: Family | None = FAMILIES.get(self.kind)
        self.problems = [
            f"`{name}` is a parameter that the checkpoint does not have" for name in recovery.added
        ]

    def make(self) -> tuple[dict[str, Any], dict[str, tuple[str, Weight]]]:
        """Returns the new config, and name in the checkpoint and tensor by name in the model.

        Raises:
            UnsupportedError: With everything that stands against it.
        """
        names = self.origin.names
        kept, counts = self._layers()
        gone = {name for name in names if self._is_dropped(name, kept)}
        for name, given in names.items():
            known = name in self.recovery.tensors or name in self.recovery.folded
            if not known and name not in gone:
                reason = self.recovery.lost.get(name, "the module does not read it any more")
                self.problems.append(f"`{given}`: {reason}")
        config = self._config(kept, counts)
        if self.problems:
            raise _refusal(self.kind, self.problems)
        tensors: dict[str, tuple[str, Weight]] = {}
        for name, item in self.recovery.tensors.items():
            given = names[name]
            tensors[self._renamed(name, given, kept)] = (
                self._renamed(given, given, kept), item.result(name),
            )  # fmt: skip
        for name, given, weight in self._untouched():
            if not self._is_dropped(name, kept):
                tensors[self._renamed(name, given, kept)] = (
                    self._renamed(given, given, kept), weight,
                )  # fmt: skip
        return config, tensors

    def _layers(self) -> tuple[dict[str, list[int]], dict[str, int]]:
        """Returns indices of the layers of which anything is left, and how many there were."""
        if self.family is None:
            return {}, {}
        kept: dict[str, set[int]] = {}
        counts: dict[str, int] = {}
        for name, given in self.origin.names.items():
            found = self.family.layer_of(given)
            if found is None:
                continue
            stem, idx, _ = found
            counts[stem] = max(counts.get(stem, 0), idx + 1)
            kept.setdefault(stem, set())
            known = self.recovery
            if name in known.tensors or name in known.lost or name in known.folded:
                kept[stem].add(idx)
        return {stem: sorted(each) for stem, each in kept.items()}, counts

    def _is_dropped(self, name: str, kept: Mapping[str, list[int]]) -> bool:
        given = self.origin.names.get(name) or self.origin.unread[name]
        found = None if self.family is None else self.family.layer_of(given)
        return found is not None and found[0] in kept and found[1] not in kept[found[0]]

    def _renamed(self, name: str, given: str, kept: Mapping[str, list[int]]) -> str:
        """Returns the name of a tensor after layers were dropped.

        Args:
            name: Its name in the model or in the checkpoint.
            given: Its name in the checkpoint, which says its layer.
            kept: Indices of the kept layers.
        """
        found = None if self.family is None else self.family.layer_of(given)
        if found is None:
            return name
        stem, idx, _ = found
        new = kept[stem].index(idx)
        if new == idx:
            return name
        leaf = stem.rpartition(".")[2].rstrip("s")  # `encoder.layer.3` is `layers.3` in the model
        return re.sub(rf"(^|\.)({leaf}s?)\.{idx}\.", rf"\g<1>\g<2>.{new}.", name, count=1)

    def _config(self, kept: Mapping[str, list[int]], counts: Mapping[str, int]) -> dict[str, Any]:
        items = self.recovery.tensors
        tensors = {self.origin.names[name]: item for name, item in items.items()}
        is_same = all(item.shape == item.full for item in items.values()) and all(
            len(each) == counts[stem] for stem, each in kept.items()
        )
        config = dict(self.origin.config)
        if not is_same and self.family is None:
            changed = [name for name, item in tensors.items() if item.shape != item.full]
            self.problems.append(
                f"sizes changed ({_listed(changed)}), and regraft has no table that says which "
                f"values of the config of `{self.kind}` they are; it has {', '.join(FAMILIES)}"
            )
        elif not is_same and self.family is not None:
            change = ConfigChange(self.origin.config, self.family)
            config = change.run(tensors, kept, counts)
            self.problems += change.problems
        # what a capture casts is written as it is computed with
        cast = {item.dtype for item in items.values() if item.dtype is not item.weight.dtype}
        wide = {item.dtype for item in items.values() if item.dtype.is_float}
        if cast and len(wide) == 1 and next(iter(wide)) in _DTYPES:
            config.pop("torch_dtype", None)
            config["dtype"] = _DTYPES[next(iter(wide))]
        return config

    def _untouched(self) -> Iterator[tuple[str, str, Weight]]:
        """Iterates over tensors that no weight follows from: they stay as they were."""
        untouched = dict(self.origin.unread)
        untouched.update((name, self.origin.names[name]) for name in self.recovery.folded)
        if not untouched:
            return
        given: dict[str, Weight] = {}
        for file in sorted(self.origin.folder.glob("*.safetensors")):
            given.update(read_safetensors(file).tensors)
        for name, each in untouched.items():
            if each not in given:
                raise InputError(f"`{self.origin.folder}` does not have `{each}` any more")
            yield name, each, given[each]


def check_complete(
    expected: Expected, config: Mapping[str, Any], tensors: Mapping[str, tuple[str, Weight]]
) -> None:
    """Compares what is written with what a model of the new config wants.

    Raises:
        UnsupportedError: Naming every tensor that would be missing, left over or of another size.
    """
    wanted = expected(config)
    problems = []
    for name, (given, weight) in tensors.items():
        shape = wanted.shapes.get(name)
        if shape is None:
            problems.append(f"`{given}` has no place in a model of the new config")
        elif shape != weight.shape:
            problems.append(
                f"`{given}` is {list(weight.shape)}, the new config wants {list(shape)}"
            )
    roots = {wanted.tied.get(name, name) for name in tensors}
    problems += [
        f"`{name}` would be missing"
        for name in wanted.shapes
        if name not in tensors and wanted.tied.get(name, name) not in roots
    ]
    if problems:
        raise _refusal(str(config.get("model_type")), problems)


def _refusal(kind: str, problems: list[str]) -> UnsupportedError:
    more = len(problems) - _MAX_NAMED
    lines = "\n  ".join(problems[:_MAX_NAMED]) + (f"\n  and {more} more" if more > 0 else "")
    return UnsupportedError(
        f"the module is no `{kind}` of `transformers` any more:\n  {lines}",
        hint="write it with `--target torch` or `--target ort-cpu`, which take every module",
    )


def _listed(names: list[str]) -> str:
    more = len(names) - _MAX_NAMED
    text = ", ".join(f"`{name}`" for name in names[:_MAX_NAMED])
    return text + (f" and {more} more" if more > 0 else "")
