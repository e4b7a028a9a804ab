"""Where plugins come from: a Python file, or an installed package that offers one.

A package offers a plugin under the entry point group `regraft.plugins`:

```toml
[project.entry-points."regraft.plugins"]
acme = "acme_regraft:PLUGIN"
```

It is used when it is named (`--plugin acme`), never because it happens to be installed: the same
command gives the same result everywhere, and no package can break another's commands.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from regraft.ir.errors import UsageError
from regraft.passes.pipeline import suggest
from regraft.plugins import API_VERSION, Plugin
from regraft.sources import sha256_of

GROUP = "regraft.plugins"
"""The entry point group of installed plugins."""


def load_plugin(place: str) -> Plugin:
    """Imports a plugin; this runs its code.

    Args:
        place: `FILE.py:NAME`, or the name under which an installed package offers it.

    Raises:
        UsageError: When it does not exist, its code fails, or the value is no `Plugin`.
    """
    value = _from_file(place) if _is_file(place) else _from_package(place)
    if isinstance(value, Plugin):
        return value
    raise UsageError(
        f"`{place}` is a {type(value).__name__}, not a Plugin",
        hint=f"write `{_name(place)} = regraft.Plugin(api_version={API_VERSION}, name=…, …)`",
    )


def fingerprint(place: str) -> str:
    """Returns what tells two contents of a place apart: a file's hash, a package's version.

    Raises:
        UsageError: When there is nothing at the place.
    """
    if not _is_file(place):
        found = _entry_point(place)
        return "unknown" if found.dist is None else f"{found.dist.name}=={found.dist.version}"
    path = Path(place.rpartition(":")[0])
    if not path.is_file():
        raise UsageError(f"plugin file `{path}` does not exist", hint="give --plugin")
    return sha256_of(path)


def _is_file(place: str) -> bool:
    return ":" in place or place.endswith(".py") or "/" in place


def _name(place: str) -> str:
    return place.rpartition(":")[2] if _is_file(place) else "PLUGIN"


def _from_file(place: str) -> object:
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
    value: object = getattr(module, name, None)
    if value is None:
        raise UsageError(f"plugin file `{path}` has no `{name}`")
    return value


def _from_package(name: str) -> object:
    found = _entry_point(name)
    try:
        value: object = found.load()
    except Exception as error:
        raise UsageError(
            f"plugin `{name}` (`{found.value}`) fails: {type(error).__name__}: {error}"
        ) from error
    return value


def _entry_point(name: str) -> EntryPoint:
    """Returns the one entry point of a name.

    Raises:
        UsageError: When no installed package offers it, or two offer different ones.
    """
    offered = entry_points(group=GROUP)
    found = {point.value: point for point in offered if point.name == name}
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise UsageError(
            f"plugin `{name}` is offered more than once: {', '.join(sorted(found))}",
            hint="uninstall one of the packages",
        )
    known = {point.name for point in offered}
    raise UsageError(
        f"no installed package offers a plugin `{name}`",
        hint=suggest(name, known) if known else "for a file, give `FILE.py:NAME`",
    )
