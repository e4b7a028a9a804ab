"""Plugins: passes, rules and operators of one's own, as one value in a Python file.

```python
from regraft import Plugin

PLUGIN = Plugin(api_version=1, name="acme", passes=(MyPass,), rules=(MyRule(),))
```

`--plugin FILE.py:PLUGIN` makes the passes available by name; the rules run as the pass named after
the plugin; the operators can stand in text modules.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from regraft.backends.onnx import ort_ops
from regraft.ir.errors import UsageError
from regraft.ir.ops import OPS
from regraft.ir.opspec import OpSpec
from regraft.ir.rewrite.rule import CanCompile, RuleSet
from regraft.passes import PASSES
from regraft.passes.protocol import Pass
from regraft.passes.rule_pass import pass_of_rules

API_VERSION = 1
"""What `Plugin.api_version` must be; raised when a plugin would have to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """What a plugin contributes; plain data, nothing happens on import.

    Args:
        api_version: The version of this interface that it was written for (`API_VERSION`).
        name: kebab-case; the pass that runs `rules` has this name, operators start with `name.`.
        passes: Pass classes.
        rules: Rules, run as one exact pass.
        operators: Operators, named `name.operator`.
    """

    api_version: int
    name: str
    passes: tuple[type[Pass], ...] = ()
    rules: tuple[CanCompile, ...] = ()
    operators: tuple[OpSpec, ...] = ()


def load_plugin(place: str) -> Plugin:
    """Imports a plugin; this runs the file's code.

    Args:
        place: `FILE.py:NAME`.

    Raises:
        UsageError: When the file or the name does not exist, the file fails, the value is no
            `Plugin`, or it was written for another version of the interface.
    """
    file, colon, name = place.rpartition(":")
    path = Path(file)
    if not colon or path.suffix != ".py" or not name.isidentifier():
        raise UsageError(f"`{place}` is not `FILE.py:NAME`", hint="such as `my_passes.py:PLUGIN`")
    if not path.is_file():
        raise UsageError(f"plugin file `{path}` does not exist")
    spec = importlib.util.spec_from_file_location(f"regraft_plugin_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"`{path}` cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"plugin file `{path}` fails: {type(error).__name__}: {error}") from error
    plugin = getattr(module, name, None)
    if plugin is None:
        raise UsageError(f"plugin file `{path}` has no `{name}`")
    if not isinstance(plugin, Plugin):
        raise UsageError(
            f"`{place}` is a {type(plugin).__name__}, not a Plugin",
            hint=f"write `{name} = regraft.Plugin(api_version={API_VERSION}, name=…, …)`",
        )
    return plugin


@dataclass(frozen=True, slots=True)
class Extensions:
    """What all plugins together add to regraft's own passes and operators.

    Args:
        passes: All passes, regraft's first.
        operators: All operators by name.
    """

    passes: tuple[type[Pass], ...]
    operators: Mapping[str, OpSpec]


def combine(plugins: Iterable[Plugin]) -> Extensions:
    """Returns regraft's passes and operators with those of plugins.

    Raises:
        UsageError: When a plugin was written for another version, or a name is taken.
    """
    passes: list[type[Pass]] = list(PASSES)
    operators = dict(OPS) | {spec.name: spec for spec in ort_ops.OPS}
    for plugin in plugins:
        if plugin.api_version != API_VERSION:
            raise UsageError(
                f"plugin `{plugin.name}` is written for version {plugin.api_version} of the plugin "
                f"interface, this is version {API_VERSION}",
                hint="install the plugin's release for this regraft",
            )
        added = list(plugin.passes)
        if plugin.rules:
            added.append(pass_of_rules(plugin.name, RuleSet(*plugin.rules)))
        _refuse_clashes(plugin, "pass", [p.name for p in added], [p.name for p in passes])
        passes += added
        for spec in plugin.operators:
            if not spec.name.startswith(f"{plugin.name}."):
                raise UsageError(
                    f"plugin `{plugin.name}`: operator `{spec.name}` is outside its namespace",
                    hint=f"name it `{plugin.name}.{spec.name}`",
                )
        _refuse_clashes(plugin, "operator", [spec.name for spec in plugin.operators], operators)
        operators |= {spec.name: spec for spec in plugin.operators}
    return Extensions(tuple(passes), operators)


def _refuse_clashes(plugin: Plugin, kind: str, names: Sequence[str], taken: Iterable[str]) -> None:
    seen = set(taken)
    for name in names:
        if name in seen:
            raise UsageError(f"plugin `{plugin.name}`: {kind} `{name}` exists already")
        seen.add(name)
