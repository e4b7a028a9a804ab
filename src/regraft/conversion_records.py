"""What a conversion records in its recipe, and how `rerun` finds its data again."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.ir.errors import InputError, UsageError
from regraft.passes.manager import PassRecord, decision_keys
from regraft.passes.protocol import Pass
from regraft.passes.recipe import Recipe, format_recipe
from regraft.plugin_places import fingerprint
from regraft.quality_data import TOKENIZER
from regraft.report import versions
from regraft.sources import Source, sha256_of

if TYPE_CHECKING:
    from regraft.conversion_options import ConvertOptions

KINDS = ("inputs", "train", "calibrate", "tokenizer")
"""Options of `convert` that name data."""


def recipe_of(
    options: ConvertOptions, passes: Sequence[Pass], source: Source, records: Sequence[PassRecord]
) -> str:
    """Returns the text of `recipe.yaml`: what to do again, and what it was done with."""
    settings: dict[str, Any] = {"target": options.target, "seed": options.seed}
    if options.opset is not None:
        settings["opset"] = options.opset
    if options.freeze:
        settings["freeze"] = dict(options.freeze)
    if options.dims:
        settings["dims"] = dict(options.dims)
    provenance: dict[str, Any] = {
        "source_sha256": source.sha256,
        "versions": versions(),
        "decisions": {
            key: dict(record.decisions)
            for key, record in zip(decision_keys(passes), records, strict=True)
            if record.decisions
        },
    }
    data = _data_record({kind: getattr(options, kind) for kind in KINDS})
    if data:
        provenance["data"] = data
    if options.plugins:
        provenance["plugins"] = {place: fingerprint(place) for place in options.plugins}
    return format_recipe(Recipe(tuple(passes), settings, provenance))


def _data_record(given: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Returns place and hash of every option that is a path; arrays and batches have no place."""
    return {
        kind: {"path": str(path), "sha256": digest_of(path)}
        for kind, path in given.items()
        if isinstance(path, Path)
    }


def digest_of(path: Path) -> str:
    """Returns the hash of a file, or of the names and contents of a folder's files.

    Of a folder with a tokenizer, the tokenizer alone: models lie beside it.
    """
    if (path / TOKENIZER).is_file():
        return sha256_of(path / TOKENIZER)
    if not path.is_dir():
        return sha256_of(path)
    digest = hashlib.sha256()
    for file in sorted(each for each in path.rglob("*") if each.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\n{sha256_of(file)}\n".encode())
    return digest.hexdigest()


def find_data(
    recorded: Mapping[str, Mapping[str, str]],
    given: Mapping[str, Path | None],
    beside: Path,
    needed: Collection[str],
) -> dict[str, Path]:
    """Returns the data that is there with the recorded content, by kind.

    Args:
        recorded: Place and hash by kind, as the recipe has them.
        given: Where the user says that data is now.
        beside: Folder that relative paths may be relative to.
        needed: Kinds without which nothing can be made again; decisions stand for the others.

    Raises:
        InputError: When what is needed or given is not there, or is something else.
        UsageError: For data that the output was made without.
    """
    found = {}
    for kind, path in given.items():
        if path is not None and kind not in recorded:
            raise UsageError(f"`--{kind}`: the output was made without a file of this data")
    for kind, facts in recorded.items():
        own = given.get(kind)
        places = [Path(facts["path"]), beside / facts["path"]] if own is None else [own]
        place = next((each for each in places if each.exists()), None)
        if place is not None and digest_of(place) == facts["sha256"]:
            found[kind] = place
        elif own is not None or kind in needed:
            reason = "does not exist" if place is None else "is other data: its hash differs"
            raise InputError(
                f"the output was made with `--{kind} {facts['path']}`, and "
                f"`{place or places[0]}` {reason}",
                hint=f"give its place with --{kind} PATH",
            )
    return found
