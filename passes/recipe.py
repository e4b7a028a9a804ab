"""YAML recipes: a pipeline with its settings, as users share it.

```yaml
regraft: 1            # version of the recipe format
target: ort-cpu       # optional settings of `convert`
seed: 0
passes:
  - canonicalize
  - fold-norms
  - prune: {target: "flops:0.5", round-to: 8}
```
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from regraft.ir.errors import UsageError
from regraft.passes.pipeline import Step, options_of, resolve, suggest
from regraft.passes.protocol import Pass

FORMAT_VERSION = 1
SETTINGS = ("target", "dtype", "opset", "seed", "freeze", "dims")
"""Settings of `convert` that a recipe may carry."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A parsed recipe; `provenance` is written by regraft and ignored on reading."""

    passes: tuple[Pass, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


def read_recipe(path: Path, passes: Iterable[type[Pass]]) -> Recipe:
    """Reads a recipe file with the safe loader.

    Raises:
        UsageError: For a file that is no recipe, or an unknown key, pass or option.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe `{path}` cannot be read: {_short(error)}") from error
    return parse_recipe(text, passes, str(path))


def _short(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def parse_recipe(text: str, passes: Iterable[type[Pass]], where: str = "recipe") -> Recipe:
    """Parses recipe text; see `read_recipe`."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: not valid YAML: {error}") from error
    if not isinstance(data, dict) or "passes" not in data:
        raise UsageError(f"{where}: has no `passes` list", hint="see recipes/ for examples")
    version = data.get("regraft", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise UsageError(f"{where}: recipe format {version} is not known, this reads 1")
    known = ("regraft", "passes", "provenance", *SETTINGS)
    for key in data:
        if key not in known:
            raise UsageError(f"{where}: unknown key `{key}`", hint=suggest(str(key), known))
    if not isinstance(data["passes"], list):
        raise UsageError(f"{where}: `passes` is not a list")
    steps = [_step(item, f"{where}: passes[{i}]") for i, item in enumerate(data["passes"])]
    settings = {key: data[key] for key in SETTINGS if key in data}
    _check_settings(settings, where)
    return Recipe(tuple(resolve(steps, passes)), settings, data.get("provenance") or {})


def _check_settings(settings: Mapping[str, Any], where: str) -> None:
    for key, value in settings.items():
        match key:
            case "opset" | "seed":
                fits, kind = isinstance(value, int) and not isinstance(value, bool), "a number"
            case "freeze" | "dims":
                fits = isinstance(value, dict) and all(
                    isinstance(k, str) and isinstance(v, int) for k, v in value.items()
                )
                kind = "sizes by name"
            case _:
                fits, kind = isinstance(value, str), "a name"
        if not fits:
            raise UsageError(f"{where}: `{key}` is `{value}`, expected {kind}")


def _step(item: Any, where: str) -> Step:
    if isinstance(item, str):
        return Step(item, {})
    if isinstance(item, dict) and len(item) == 1:
        ((name, options),) = item.items()
        if options is None or isinstance(options, dict):
            return Step(str(name), options or {})
    raise UsageError(f"{where}: expected `name` or `name: {{option: value}}`, got `{item}`")


def format_recipe(recipe: Recipe) -> str:
    """Returns the YAML text of a recipe."""
    data: dict[str, Any] = {"regraft": FORMAT_VERSION, **recipe.settings, "passes": []}
    for item in recipe.passes:
        options = {key: _plain(value) for key, value in options_of(item).items()}
        data["passes"].append({item.name: options} if options else item.name)
    if recipe.provenance:
        data["provenance"] = dict(recipe.provenance)
    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)
