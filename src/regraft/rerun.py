"""`rerun`: makes an output again from its recipe and recorded decisions, and compares the files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from regraft.conversion import convert
from regraft.conversion_options import ConvertOptions
from regraft.conversion_records import find_data
from regraft.frontends.huggingface.checkpoint import CONFIG, open_checkpoint
from regraft.huggingface_sources import folder_of
from regraft.ir.errors import InputError, RegraftError, UsageError
from regraft.passes.manager import CheckMode, decision_keys
from regraft.passes.protocol import Lossy
from regraft.passes.recipe import Recipe, read_recipe
from regraft.plugin_places import fingerprint
from regraft.plugins import Extensions
from regraft.report import versions
from regraft.sources import sha256_of

TALK = ("report.json", "report.html", "recipe.yaml")
"""Files of an output that hold times and paths: not compared."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What an output folder says about how it was made.

    Args:
        out: The folder.
        source: Path of the source as it was given.
        sha256: Hash of the source's file.
        plugins: Plugin places with the hash of each file, or the version of each package.
        data: Place and hash of data, by the option of `convert`.
        decisions: Decisions by name of the pass.
        versions: Versions that made it.
    """

    out: Path
    source: str
    sha256: str
    plugins: Mapping[str, str]
    data: Mapping[str, Mapping[str, str]]
    decisions: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out again.

    Args:
        files: Whether each model file is the same, byte for byte; None for one that only one side
            has.
        difference: How the outputs of the models differ, "" when the files are the same.
        changed_versions: Package -> (recorded, installed) where they differ.
    """

    files: Mapping[str, bool | None]
    difference: str
    changed_versions: Mapping[str, tuple[str, str]]

    @property
    def is_identical(self) -> bool:
        """Whether every model file came out the same."""
        return all(self.files.values())


def read_output(out: Path) -> Recorded:
    """Reads what an output folder recorded.

    Raises:
        InputError: When it is no output folder of `convert`, or its files are damaged.
    """
    report_path, recipe_path = out / "report.json", out / "recipe.yaml"
    if not report_path.is_file() or not recipe_path.is_file():
        raise InputError(
            f"`{out}` is no output folder: it has no `report.json` and `recipe.yaml`",
            hint="give the folder that `regraft convert -o` wrote",
        )
    try:
        report = json.loads(report_path.read_text(encoding="utf-8"))
        recipe = yaml.safe_load(recipe_path.read_text(encoding="utf-8"))
        provenance = recipe.get("provenance") or {}
        source = report["source"]
        recorded = Recorded(
            out, str(source["path"]), str(source["sha256"]), provenance.get("plugins") or {},
            provenance.get("data") or {}, provenance.get("decisions") or {}, report["versions"],
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise InputError(f"`{out}`: its records cannot be read: {error}") from error
    return recorded


def find_source(recorded: Recorded, given: Path | None) -> Path:
    """Returns the source's file or Hugging Face folder, with the recorded content.

    Raises:
        InputError: When it is not there, or is another file than the recorded one.
    """
    if recorded.sha256 == str(None):
        raise InputError(
            f"`{recorded.out}` was made from `{recorded.source}`, of which no file is recorded",
            hint="convert it again: code and objects in memory have no hash to be known by",
        )
    places = [Path(recorded.source), recorded.out.parent / recorded.source]
    exists = (place for place in places if place.exists() or folder_of(place) is not None)
    path = given or next(exists, places[0])
    named = None if any(path.glob("*.onnx")) else folder_of(path)
    if named is None and path.is_dir():
        path = path / "model.onnx"
    if named is None and not path.is_file():
        raise InputError(
            f"the source `{path}` does not exist", hint="give its place with --source FILE"
        )
    files = (path,) if named is None else (named[0] / CONFIG, *open_checkpoint(named[0]).files)
    if sha256_of(*files) != recorded.sha256:
        kind = "file" if named is None else "folder"
        raise InputError(
            f"`{path}` is not the {kind} that the output was made from: its hash differs",
            hint="give the right one with --source FILE",
        )
    return path


def check_plugins(recorded: Recorded) -> Sequence[str]:
    """Returns the places of recorded plugins, which are unchanged.

    Raises:
        UsageError: When one is gone or another one.
    """
    for place, digest in recorded.plugins.items():
        if fingerprint(place) != digest:
            path = place.rpartition(":")[0]
            name = f"plugin file `{path}`" if path else f"plugin `{place}`"
            raise UsageError(
                f"{name} has changed since the output was made",
                hint="give --plugin to use it all the same",
            )
    return tuple(recorded.plugins)


def rerun(
    recorded: Recorded,
    source: Path,
    extensions: Extensions,
    *,
    data: Mapping[str, Path | None] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Converts the source again with the recorded recipe and decisions, and compares files.

    Nothing of the output is changed.

    Args:
        recorded: What the output says about how it was made.
        source: The source, as `find_source` returned it.
        extensions: Passes and operators.
        data: Where recorded data is now, by the option of `convert`, where it was moved.
        say: Called with what is done.

    Raises:
        InputError: When the data of a pass that trains is not there.
        UsageError: When such a pass was given data that no recipe can name.
    """
    recipe = read_recipe(recorded.out / "recipe.yaml", extensions.passes)
    needed = _needed_data(recorded, recipe)
    found = find_data(recorded.data, data or {}, recorded.out.parent, needed)
    with tempfile.TemporaryDirectory(prefix="regraft-") as folder:
        again = Path(folder) / "out"
        options = ConvertOptions(
            passes=recipe.passes, check=CheckMode.OFF, extensions=extensions,
            replay=recorded.decisions, train=found.get("train"),
            calibrate=found.get("calibrate", ()), tokenizer=found.get("tokenizer"),
            inputs=found.get("inputs"), **recipe.settings,
        )  # fmt: skip
        convert(source, again, options, progress=say)
        say("comparing")
        files = _same_files(recorded.out, again)
        difference = "" if all(files.values()) else _difference(recorded.out, again, extensions)
    installed = versions()
    changed = {
        name: (old, installed.get(name, "absent"))
        for name, old in recorded.versions.items()
        if installed.get(name, "absent") != old
    }
    return Outcome(files, difference, changed)


def _needed_data(recorded: Recorded, recipe: Recipe) -> Collection[str]:
    """Returns which data is needed again.

    Passes that train need it, lossy ones without decisions, and kernels that were calibrated.

    Raises:
        UsageError: When what a pass trained on was given as arrays.
    """
    keys = decision_keys(recipe.passes)
    is_open = any(
        isinstance(item.contract, Lossy) and key not in recorded.decisions
        for key, item in zip(keys, recipe.passes, strict=True)
    )
    partition = recorded.out / "partition.json"
    kernels = json.loads(partition.read_text(encoding="utf-8")) if partition.is_file() else {}
    is_open = is_open or bool(kernels.get("unified_maxima"))
    trained = _training_of(recorded, recipe)
    return recorded.data if is_open else () if trained is None else (trained,)


def _training_of(recorded: Recorded, recipe: Recipe) -> str | None:
    """Returns which data a pass trained on; None where none trains.

    Raises:
        UsageError: When it was given as arrays.
    """
    trains = next((item for item in recipe.passes if getattr(item, "needs_teacher", False)), None)
    if trains is None:
        return None
    for kind in ("train", "calibrate", "inputs"):
        if kind in recorded.data:
            return kind
    raise UsageError(
        f"`{recorded.out}`: the pass `{trains.name}` trained on data of which no file is recorded",
        hint="convert with `--train DATA` (in Python a path), which is recorded with its hash",
    )


def _same_files(old: Path, new: Path) -> dict[str, bool | None]:
    names = sorted({file.name for folder in (old, new) for file in folder.iterdir()} - {*TALK})
    same: dict[str, bool | None] = {}
    for name in names:
        a, b = old / name, new / name
        if a.is_file() and b.is_file():
            same[name] = sha256_of(a) == sha256_of(b)
        elif name.endswith((".onnx", ".data", ".py", ".safetensors")):
            same[name] = None
    return same


def _difference(old: Path, new: Path, extensions: Extensions) -> str:
    """Returns how far the outputs of the two models are apart, in one line."""
    from regraft.comparison import compare_sources
    from regraft.sources import open_source

    try:
        report = compare_sources(open_source(old, extensions), open_source(new, extensions)).report
    except RegraftError as error:
        return f"the outputs cannot be compared: {error.message}"
    worst = max(report.outputs, key=lambda diff: (not diff.ok, diff.max_rel))
    verdict = "within tolerance" if report.ok else "out of tolerance"
    return f"outputs differ by at most {worst.max_abs:.3g} (`{worst.name}`), {verdict}"
