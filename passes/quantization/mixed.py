"""Layers, or parts of them, in 8 bits where 4 cost most: chosen by measured damage.

Every layer is encoded in its forms once. What 4 bits of one layer alone do to the outputs of the
module is measured, on samples that no code was found on, and the shared solver takes the choice of
least damage within the target. Of a layer with some outputs in 8 bits (Zheng et al., MixLLM, 2024)
the damage is measured as well where something stands between it and the next that makes outputs
count differently; of one with some inputs in 8 bits it falls as the error of its results does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from regraft.ir.errors import TargetError
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.passes.protocol import ActivationSource, Samples
from regraft.passes.quantization.mixed_layer import ALL_HIGH, LOW, Form, Layer, Split
from regraft.passes.quantization.mixed_parts import write_mixed
from regraft.passes.quantization.sites import Linear
from regraft.passes.solver import CurveStore, Problem, SeparateCosts, Unit, solve

Array = np.ndarray[Any, Any]
Forms = Mapping[str, Form]

_SPLITS: tuple[frozenset[Split], ...] = (
    frozenset(),
    frozenset({"outputs"}),
    frozenset({"inputs"}),
    frozenset({"outputs", "inputs"}),
)


@dataclass(slots=True)
class Alone:
    """Measures what forms of layers do to the outputs.

    Attributes:
        module: The float module.
        layers: By name.
        source: Gives outputs.
        samples: What it is run on.
        folder: For large codes.
    """

    module: Module
    layers: Mapping[str, Layer]
    source: ActivationSource
    samples: Samples
    folder: Path | None = None
    _reference: list[list[Array]] | None = None

    @property
    def fingerprint(self) -> str:
        """Changes with the module, the codes and the samples."""
        digest = hashlib.sha256(str(self.module).encode())
        for name, layer in self.layers.items():
            digest.update(f"{name} {layer.losses} {layer.low.grid.group}".encode())
        for sample in self.samples:
            for name, array in sorted(sample.items()):
                digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def loss(self, levels: Mapping[str, float]) -> float:
        """Returns what some shares of the outputs of layers in 8 bits lose (`LossSource`)."""
        return self.loss_of({name: output_form(level) for name, level in levels.items()})

    def loss_of(self, forms: Forms) -> float:
        """Returns the mean square of the error of the outputs over that of the outputs.

        Args:
            forms: By name; layers that are not named stay in float.
        """
        values: dict[Value, Value] = {}
        copy = self.module.clone(values)
        assemble(copy, [self.layers[name] for name in forms], forms, values, self.folder)
        if self._reference is None:
            self._reference = self._outputs(self.module)
        lost = whole = 0.0
        for before, after in zip(self._reference, self._outputs(copy), strict=True):
            for a, b in zip(before, after, strict=True):
                lost += float(np.square(a - b, dtype=np.float64).mean())
                whole += float(np.square(a, dtype=np.float64).mean())
        return lost / max(whole, 1e-300)

    def _outputs(self, module: Module) -> list[list[Array]]:
        outputs = [v for v in module.graph.outputs if v.dtype is not None and v.dtype.is_float]
        found = self.source.activations(module, outputs, self.samples)
        return [[np.array(item[value]) for value in outputs] for item in found]


def output_form(share: float) -> Form:
    """Returns the form with a share of the outputs in 8 bits."""
    if share in (0.0, 1.0):
        return ALL_HIGH if share else LOW
    return Form("outputs", share)


def assemble(
    module: Module, layers: Sequence[Layer], forms: Forms,
    values: Mapping[Value, Value] | None, folder: Path | None = None,
) -> None:  # fmt: skip
    """Writes layers into their module, or into a copy of it.

    Args:
        module: The module, changed in place.
        layers: The layers.
        forms: By name.
        values: From values of the layers' module to those of the copy; None for that module itself.
        folder: For large codes.
    """
    for layer in layers:
        site = layer.site if values is None else _translated(layer.site, values)
        write_mixed(module, site, layer, forms[site.name], folder)


def _translated(site: Linear, values: Mapping[Value, Value]) -> Linear:
    maker = values[site.node.output].producer
    if maker is None:
        raise AssertionError("a layer has a node")
    bias = None if site.bias is None else values[site.bias]
    return Linear(maker, values[site.x], values[site.weight], bias, site.transposed)


def damages(
    source: Alone, splits: frozenset[Split] = frozenset(), path: Path | None = None
) -> dict[str, dict[Form, float]]:
    """Returns what forms of each layer alone lose; what a file knows is not measured again.

    Args:
        source: Measures.
        splits: Which parts of layers may be in 8 bits.
        path: Keeps measurements.
    """
    store = CurveStore(path)
    found: dict[str, dict[Form, float]] = {}
    for name, layer in source.layers.items():
        lost = found[name] = {LOW: store.get(source, {name: 0.0}), ALL_HIGH: 0.0}
        scale = lost[LOW] / max(layer.losses[LOW], 1e-300)
        for form in layer.forms:
            if form.split == "inputs" and "inputs" in splits:
                lost[form] = scale * layer.losses[form]
            if form.split == "outputs" and "outputs" in splits and layer.follows:
                lost[form] = store.get(source, {name: form.share})
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """Choices among encoded layers, by what may be spent.

    Args:
        source: The layers, and what measures them.
        alone: What forms of each lose, see `damages`.
        known: What choices were measured to lose.
    """

    source: Alone
    alone: Mapping[str, Mapping[Form, float]]
    known: dict[tuple[Form, ...], float] = field(default_factory=dict)

    def bits(self, forms: Forms) -> float:
        """Returns average bits of a code."""
        layers = self.source.layers
        total = sum(layer.num_codes for layer in layers.values())
        return sum(layers[name].num_bits(form) for name, form in forms.items()) / total

    def num_bytes(self, forms: Forms) -> int:
        """Returns the size of all layers."""
        return sum(self.source.layers[name].num_bytes(form) for name, form in forms.items())

    def loss(self, forms: Forms) -> float:
        """Returns what a choice is measured to lose."""
        key = tuple(forms[name] for name in self.source.layers)
        if key not in self.known:
            self.known[key] = self.source.loss_of(forms)
        return self.known[key]

    def of_bits(self, bits: float) -> dict[str, Form]:
        """Returns the choice of least measured loss within average bits of a code."""
        total = sum(layer.num_codes for layer in self.source.layers.values())
        return self._best(bits * total, in_bits=True)

    def of_bytes(self, size: float) -> dict[str, Form]:
        """Returns the choice of least measured loss within a size."""
        return self._best(size, in_bits=False)

    def _best(self, budget: float, *, in_bits: bool) -> dict[str, Form]:
        offered: set[Split] = {form.split for lost in self.alone.values() for form in lost}
        found = [
            self._allocated(budget, splits, in_bits=in_bits)
            for splits in _SPLITS if splits <= offered
        ]  # fmt: skip
        return found[0] if len(found) == 1 else min(found, key=self.loss)

    def _allocated(
        self, budget: float, splits: frozenset[Split], *, in_bits: bool
    ) -> dict[str, Form]:
        """Returns the choice of least sum of damages.

        Raises:
            TargetError: When even few bits everywhere are not within the budget.
        """
        units, tables, kept = [], [], []
        for name, lost in self.alone.items():
            layer = self.source.layers[name]
            cost = {f: layer.num_bits(f) if in_bits else float(layer.num_bytes(f)) for f in lost}
            forms = _falling(
                {f: lost[f] for f in lost if f.split == "none" or f.split in splits}, cost
            )
            units.append(Unit(name, np.linspace(0.5, 1, len(forms)),
                              np.array([lost[form] for form in forms])))  # fmt: skip
            tables.append(np.array([cost[form] for form in forms]))
            kept.append(forms)
        problem = Problem(tuple(units), SeparateCosts(tables), budget)
        try:
            chosen = solve(problem).choice
        except TargetError as error:
            error.add_note("of linear layers: codes with their scales and zero points")
            raise
        return {unit.name: forms[k] for unit, forms, k in zip(units, kept, chosen, strict=True)}


def _falling(lost: Mapping[Form, float], cost: Mapping[Form, float]) -> list[Form]:
    """Returns the forms that lose less than all that cost no more, by cost."""
    found: list[Form] = []
    for form in sorted(lost, key=lambda each: (cost[each], lost[each])):
        if not found or lost[form] < lost[found[-1]]:
            found.append(form)
    return found
