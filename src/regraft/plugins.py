"""Plugins: passes, rules and operators of one's own, as one value in a Python file or package.

```python
from regraft import Plugin

PLUGIN = Plugin(api_version=1, name="acme", passes=(MyPass,), rules=(MyRule(),))
```

`--plugin FILE.py:PLUGIN` makes the passes available by name; the rules run as the pass named after
the plugin; the operators can stand in text modules. Importers read operators of ONNX files that
regraft carries through otherwise, emitters write operators as more than their body. Where plugins
come from is in `regraft.plugin_places`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from regraft.backends.onnx import ort_ops, ort_recurrence_ops
from regraft.backends.onnx.emitter import Emit
from regraft.backends.onnx.ops import FAMILIES as ONNX_EMITTERS
from regraft.frontends.onnx.importer import Import
from regraft.frontends.onnx.ops import FAMILIES as ONNX_IMPORTERS
from regraft.frontends.torch.call import Import as TorchImport
from regraft.ir.errors import UsageError
from regraft.ir.ops import OPS
from regraft.ir.opspec import OpSpec
from regraft.ir.rewrite.rule import CanCompile, RuleSet
from regraft.passes import PASSES
from regraft.passes.pipeline import check_options
from regraft.passes.protocol import Pass
from regraft.passes.rule_pass import pass_of_rules

if TYPE_CHECKING:  # importing it imports torch
    from regraft.backends.torch.emitter import Emit as TorchEmit

_TARGET_OPS = (*ort_ops.OPS, *ort_recurrence_ops.OPS)

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
        onnx_importers: How operators of ONNX files become operators of modules; only ones that
            regraft has no importer for.
        onnx_emitters: How operators are written to ONNX files; only ones that regraft has no
            emitter for. An operator with a body needs none.
        torch_importers: How PyTorch overloads (`acme.twice.default`) become operators of modules;
            only ones that regraft has no importer for.
        torch_emitters: How operators are written as PyTorch source; only ones that regraft has no
            emitter for. An operator with a body needs none.
    """

    api_version: int
    name: str
    passes: tuple[type[Pass], ...] = ()
    rules: tuple[CanCompile, ...] = ()
    operators: tuple[OpSpec, ...] = ()
    onnx_importers: tuple[Import, ...] = ()
    onnx_emitters: tuple[Emit, ...] = ()
    torch_importers: tuple[TorchImport, ...] = ()
    torch_emitters: tuple[TorchEmit, ...] = ()


@dataclass(frozen=True, slots=True)
class Extensions:
    """What regraft and all plugins together offer.

    Args:
        passes: All passes, regraft's first.
        operators: All operators by name.
        onnx_importers: All importers of ONNX operators, by family.
        onnx_emitters: All emitters to ONNX, by family.
        torch_importers: Importers of PyTorch overloads that plugins add.
        torch_emitters: Emitters to PyTorch that plugins add.
        trust_remote_code: Whether a Hugging Face folder may run code of its own.
    """

    passes: tuple[type[Pass], ...]
    operators: Mapping[str, OpSpec]
    onnx_importers: tuple[tuple[Import, ...], ...] = ONNX_IMPORTERS
    onnx_emitters: tuple[tuple[Emit, ...], ...] = ONNX_EMITTERS
    torch_importers: tuple[TorchImport, ...] = ()
    torch_emitters: tuple[TorchEmit, ...] = ()
    trust_remote_code: bool = False


def combine(plugins: Iterable[Plugin]) -> Extensions:
    """Returns what regraft offers with what plugins add.

    Raises:
        UsageError: When a plugin was written for another version, a name is taken, or a pass has
            an option that no pipeline can write.
    """
    passes: list[type[Pass]] = list(PASSES)
    operators = dict(OPS) | {spec.name: spec for spec in _TARGET_OPS}
    importers, emitters = [*ONNX_IMPORTERS], [*ONNX_EMITTERS]
    overloads: list[TorchImport] = []
    torch_emitters: list[TorchEmit] = []
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
        for item in plugin.passes:
            check_options(item, f"plugin `{plugin.name}`, pass `{item.name}`")
        passes += added
        for spec in plugin.operators:
            if not spec.name.startswith(f"{plugin.name}."):
                raise UsageError(
                    f"plugin `{plugin.name}`: operator `{spec.name}` is outside its namespace",
                    hint=f"name it `{plugin.name}.{spec.name}`",
                )
        _refuse_clashes(plugin, "operator", [spec.name for spec in plugin.operators], operators)
        operators |= {spec.name: spec for spec in plugin.operators}
        _refuse_clashes(plugin, "importer of", _imported(plugin.onnx_importers),
                        _imported(row for family in importers for row in family))  # fmt: skip
        importers.append(plugin.onnx_importers)
        _refuse_clashes(plugin, "emitter of", _emitted(plugin.onnx_emitters),
                        _emitted(row for family in emitters for row in family))  # fmt: skip
        emitters.append(plugin.onnx_emitters)
        overloads += plugin.torch_importers
        _refuse_clashes(plugin, "PyTorch emitter of", _emitted(plugin.torch_emitters),
                        _emitted(torch_emitters))  # fmt: skip
        torch_emitters += plugin.torch_emitters
    return Extensions(
        tuple(passes), operators, tuple(importers), tuple(emitters), tuple(overloads),
        tuple(torch_emitters),
    )  # fmt: skip


def _imported(rows: Iterable[Import]) -> list[str]:
    return [f"{row.domain or 'ai.onnx'}:{row.op_type}" for row in rows]


def _emitted(rows: Iterable[Emit | TorchEmit]) -> list[str]:
    return [row.spec.name for row in rows]


def _refuse_clashes(plugin: Plugin, kind: str, names: Sequence[str], taken: Iterable[str]) -> None:
    seen = set(taken)
    for name in names:
        if name in seen:
            raise UsageError(f"plugin `{plugin.name}`: {kind} `{name}` exists already")
        seen.add(name)
