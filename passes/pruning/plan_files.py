"""Plans that earlier conversions recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from regraft.ir.errors import InputError

RECIPE = "recipe.yaml"
_HINT = "give the output folder of a conversion with `prune`, its `recipe.yaml`, or a plan as JSON"


def read_plan(path: Path) -> Mapping[str, Any]:
    """Returns the document of a plan: of an output folder, a recipe, or a file of its own.

    Raises:
        InputError: When there is none.
    """
    file = path / RECIPE if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
        document = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"the pruning plan `{path}` cannot be read: {error}", hint=_HINT
        ) from error
    found = document
    for key in ("provenance", "decisions", "prune", "plan"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    if not isinstance(found, dict) or "groups" not in found:
        raise InputError(f"`{path}` records no pruning plan", hint=_HINT)
    return found
