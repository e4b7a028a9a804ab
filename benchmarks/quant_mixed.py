"""4 and 8 bits mixed by layer and by output on the sentence encoder, against one width for all."""

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
from regraft.passes.calibration.statistics import gather_statistics
from regraft.passes.protocol import Context
from regraft.passes.quantization.formats import UINT4
from regraft.passes.quantization.mixed import (
    Alone,
    Formats,
    Layer,
    assemble,
    best_within,
    damages,
    encoded_layer,
    high_rows,
    num_bits,
)
from regraft.passes.quantization.row_gains import row_gains
from regraft.passes.quantization.sites import Linear, linears

Array = np.ndarray[Any, Any]

_SENTENCES = 128
_JUDGED = 24
_BITS = (4.2, 4.4, 4.7, 5.0, 5.5, 6.0, 6.5, 7.2)
_BETWEEN = (4.38, 6.0)
"""The bars are for these; a layer is a step, so that 4.4 comes out as 4.39."""
_BELOW, _BELOW_AT_5 = 1.5, 2.0
_POINTS = 8


@dataclass(frozen=True, slots=True)
class _Mixer:
    """Makes mixes of a module and says what they lose."""

    module: Module
    layers: Mapping[str, Layer]
    reference: Array
    test: Sequence[Sequence[int]]

    def lost(self, masks: Mapping[str, Array]) -> tuple[float, float]:
        """Returns 1 - cosine of the embeddings, mean and worst, in ONNX Runtime."""
        values: dict[Value, Value] = {}
        copy = self.module.clone(values)
        assemble(copy, list(self.layers.values()), masks, values)
        regraft.apply(copy, "legalize{target=ort-cpu}", check="off")
        path = FOLDER / "mixed.onnx"
        path.unlink(missing_ok=True)
        regraft.save(copy, path, target="ort-cpu")
        found = cosines(self.reference, embeddings(path, self.test))
        return 1 - float(found.mean()), 1 - float(found.min())

    def everywhere(self, share: float) -> dict[str, Array]:
        """Returns masks of one width for all."""
        return {name: high_rows(layer, share) for name, layer in self.layers.items()}

    def bits(self, masks: Mapping[str, Array]) -> float:
        """Returns the average width of a code."""
        total = sum(layer.low.codes.size for layer in self.layers.values())
        spent = sum(num_bits(self.layers[n], float(mask.mean())) for n, mask in masks.items())
        return spent / total


def _mixed(settings: Settings) -> Iterator[Row]:
    source = encoder()
    module = regraft.load(source.path)
    regraft.apply(module, "canonicalize,fuse", check="off")
    ctx = Context(samples=source.calibration_feeds(_SENTENCES), activations=OrtActivations())
    sites = list(linears(module.graph))
    inputs = list(dict.fromkeys(site.x for site in sites))
    found = gather_statistics(module, inputs, ctx, inputs)
    readers: dict[Value, list[Linear]] = {}
    for site in sites:
        readers.setdefault(site.x, []).append(site)
    plain, layers = (
        {site.name: encoded_layer(site, Formats(UINT4, 32, method), found[site.x],
                                  row_gains(site, readers, found)) for site in sites}
        for method in ("round", "gptq")
    )  # fmt: skip
    judge = Alone(module, layers, OrtActivations(), source.calibration_feeds(_JUDGED))
    alone = damages(judge)
    mixer = _Mixer(module, layers, source.reference, source.test)
    rounded = _Mixer(module, plain, source.reference, source.test)
    low, high = (mixer.lost(mixer.everywhere(share))[0] for share in (0.0, 1.0))
    plain_low = rounded.lost(rounded.everywhere(0.0))[0]
    note = f"{len(source.test)} sentences, groups of 32"
    yield shown("4 bits everywhere, GPTQ: 1 - cosine", low, "", note)
    yield shown("4 bits everywhere, rounded: 1 - cosine", plain_low, "")
    yield shown("8 bits everywhere: 1 - cosine", high, "")
    total = 8 * sum(layer.low.codes.size for layer in layers.values())
    for rows in (False, True):
        points = [(4.0, low), (8.0, high)]
        kind = "outputs" if rows else "layers"
        for asked in _BITS:
            masks = best_within(judge, alone, asked / 8 * total, rows=rows, in_bits=True)
            bits, (mean, worst) = mixer.bits(masks), mixer.lost(masks)
            points.append((bits, mean))
            below = (low + (high - low) * (bits - 4) / 4) / mean
            name = f"by {kind}, {bits:.2f} bits: below the line from 4 to 8 bits, GPTQ in all"
            note = f"1 - cosine {mean:.5f}, worst {worst:.5f}"
            inside = _BETWEEN[0] <= bits <= _BETWEEN[1]
            yield (
                at_least(name, below, _BELOW, "x", note)
                if inside
                else shown(name, below, "x", note)
            )
            if asked == 5.0:
                line = (plain_low + (high - plain_low) * (bits - 4) / 4) / mean
                yield at_least(
                    f"by {kind}, {bits:.2f} bits, GPTQ inside: below the line of rounding",
                    line, _BELOW_AT_5, "x",
                )  # fmt: skip
        yield at_least(f"by {kind}: points that no other point dominates",
                       _undominated(points), _POINTS, "points")  # fmt: skip


def _undominated(points: Sequence[tuple[float, float]]) -> int:
    """Returns how many points have no other of at most their bits and at most their loss."""
    return sum(
        not any(b <= bits and x <= lost and (b, x) != (bits, lost) for b, x in points)
        for bits, lost in points
    )


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("mixed", "4 and 8 bits mixed in the sentence encoder", _mixed),
)
