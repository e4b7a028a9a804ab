"""4 and 8 bits mixed in the sentence encoder, against one width for all."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import regraft
from benchmarks.measure import Measurement, Row, Settings, at_least, shown
from benchmarks.quant_encoder_data import FOLDER, cosines, embeddings, encoder
from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.passes.protocol import Context
from regraft.passes.quantization.formats import UINT4
from regraft.passes.quantization.mixed import Alone, Choice, assemble, damages
from regraft.passes.quantization.mixed_encoding import encoded_layers, parted
from regraft.passes.quantization.mixed_layer import ALL_HIGH, LOW, Form, Formats, Layer, Split
from regraft.passes.quantization.sites import linears

Array = np.ndarray[Any, Any]

_SENTENCES = 512
_BITS = (4.2, 4.4, 4.7, 5.0, 5.5, 6.0, 6.5, 7.2)
_BETWEEN = (4.38, 6.0)
"""The bars are for these; parts of layers are steps, so that 4.4 comes out as 4.39."""
_BELOW, _BELOW_AT_5 = 1.5, 2.0
_POINTS = 8
_KINDS: Mapping[str, frozenset[Split]] = {
    "whole layers": frozenset(),
    "parts of layers": frozenset({"outputs", "inputs"}),
}


@dataclass(frozen=True, slots=True)
class _Mixer:
    """Makes mixes of a module and says what they lose."""

    module: Module
    layers: Mapping[str, Layer]
    reference: Array
    test: Sequence[Sequence[int]]

    def lost(self, forms: Mapping[str, Form]) -> tuple[float, float]:
        """Returns 1 - cosine of the embeddings, mean and worst, in ONNX Runtime."""
        values: dict[Value, Value] = {}
        copy = self.module.clone(values)
        assemble(copy, list(self.layers.values()), forms, values)
        regraft.apply(copy, "legalize{target=ort-cpu}", check="off")
        path = FOLDER / "mixed.onnx"
        path.unlink(missing_ok=True)
        regraft.save(copy, path, target="ort-cpu")
        found = cosines(self.reference, embeddings(path, self.test))
        return 1 - float(found.mean()), 1 - float(found.min())

    def everywhere(self, form: Form) -> float:
        """Returns the mean loss of one form for all."""
        return self.lost(dict.fromkeys(self.layers, form))[0]


def _mixed(settings: Settings) -> Iterator[Row]:
    source = encoder()
    module = regraft.load(source.path)
    regraft.apply(module, "canonicalize,fuse", check="off")
    samples = source.calibration_feeds(_SENTENCES)
    ctx = Context(samples=samples, activations=OrtActivations())
    sites = list(linears(module.graph))
    splits = _KINDS["parts of layers"]
    plain = encoded_layers(module, sites, Formats(UINT4, 32, "round"), frozenset(), ctx)
    rounded = _Mixer(module, plain, source.reference, source.test).everywhere(LOW)
    layers = encoded_layers(module, sites, Formats(UINT4, 32, "gptq"), splits, ctx)
    mixer = _Mixer(module, layers, source.reference, source.test)
    low, high = (mixer.everywhere(form) for form in (LOW, ALL_HIGH))
    note = f"{len(source.test)} sentences, groups of 32"
    yield shown("4 bits everywhere, GPTQ: 1 - cosine", low, "", note)
    yield shown("4 bits everywhere, rounded: 1 - cosine", rounded, "")
    yield shown("8 bits everywhere: 1 - cosine", high, "")
    judge = Alone(module, layers, OrtActivations(), parted(samples)[1])
    alone = damages(judge, splits)
    yield shown(
        "all layers in 4 bits over the sum of each alone: loss of the outputs",
        judge.loss_of(dict.fromkeys(layers, LOW)) / sum(lost[LOW] for lost in alone.values()), "x",
        f"{len(judge.samples)} sentences that no code was found on",
    )  # fmt: skip
    for kind, chosen in _KINDS.items():
        offered = {
            name: {f: x for f, x in lost.items() if f.split == "none" or f.split in chosen}
            for name, lost in alone.items()
        }
        choice = Choice(judge, offered)
        points = [(4.0, low), (8.0, high)]
        for asked in _BITS:
            forms = choice.of_bits(asked)
            bits, (mean, worst) = choice.bits(forms), mixer.lost(forms)
            points.append((bits, mean))
            below = (low + (high - low) * (bits - 4) / 4) / mean
            name = f"{kind}, {bits:.2f} bits: below the line from 4 to 8 bits, GPTQ in all"
            note = f"1 - cosine {mean:.5f}, worst {worst:.5f}"
            bar = _BELOW_AT_5 if asked == 5.0 else _BELOW
            held = chosen and _BETWEEN[0] <= bits <= _BETWEEN[1]
            yield at_least(name, below, bar, "x", note) if held else shown(name, below, "x", note)
            if asked == 5.0:
                line = (rounded + (high - rounded) * (bits - 4) / 4) / mean
                name = f"{kind}, {bits:.2f} bits, GPTQ inside: below the line of rounding"
                yield at_least(name, line, _BELOW_AT_5, "x")
        yield at_least(
            f"{kind}: points that no other point dominates", _undominated(points), _POINTS, "points"
        )


def _undominated(points: Sequence[tuple[float, float]]) -> int:
    """Returns how many points have no other of at most their bits and at most their loss."""
    return sum(
        not any(b <= bits and x <= lost and (b, x) != (bits, lost) for b, x in points)
        for bits, lost in points
    )


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("mixed", "4 and 8 bits mixed in the sentence encoder", _mixed),
)
