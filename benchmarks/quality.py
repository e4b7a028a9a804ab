"""Checks the quality meters on real models, and exits 1 when a bar is missed.

`python -m benchmarks.quality` needs the extras `torch` and `hf`, and the packages that
`make recovery-models` and `make models` install. Small models that are trained here are measured by
`python -m benchmarks.small_models`.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import encoder
from benchmarks.fixtures import vision_ops
from benchmarks.measure import Measurement, Row, Settings, at_least, at_most, shown
from benchmarks.models import find, named
from benchmarks.suite import run

_HUMAN = 0.5047
"""Spearman correlation of the real encoder with the people of the Lee corpus, f32."""
_ROUNDED = 5e-5


def _metric() -> str:
    people = find(encoder.TEST_TEXT).parent / "similarities0-1.txt"
    return f"embedding{{similarities={people}}}"


def _encoder(settings: Settings) -> Iterator[Row]:
    vision_ops.declare()
    import regraft

    folder, text = encoder.folder(), find(encoder.TEST_TEXT)
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "out"
        regraft.convert(folder, out)
        found = regraft.measure(folder, out, _metric(), text).figures
    for model, name in (("PyTorch", "human_spearman_a"), ("converted", "human_spearman_b")):
        value = found[name] or 0.0
        yield at_most(
            f"encoder in f32, {model}: Spearman with people, distance from {_HUMAN}",
            abs(value - _HUMAN), _ROUNDED, "", f"{value:.6f} over 1,225 pairs",
        )  # fmt: skip
    yield at_least("converted encoder: worst cosine", found["cosine_worst"], 1 - 1e-6, "")


def _int8(settings: Settings) -> Iterator[Row]:
    vision_ops.declare()
    import regraft

    module, text = regraft.load(encoder.folder()), find(encoder.TEST_TEXT)
    found = regraft.measure(module, find(named("minilm-int8")), _metric(), text)
    figures = found.figures
    yield shown("packaged int8 encoder: mean cosine", figures["cosine_mean"], "")
    yield shown("packaged int8 encoder: worst cosine", figures["cosine_worst"], "")
    yield shown("packaged int8 encoder: Spearman with people", figures["human_spearman_b"], "")
    yield at_least("packaged int8 encoder: Spearman of pairs", figures["pair_spearman"], 0.999, "")


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("encoder", "the real encoder against people, before and after", _encoder),
    Measurement("int8", "the packaged int8 encoder against the f32 one", _int8),
)

if __name__ == "__main__":
    sys.exit(run("quality", __doc__ or "", MEASUREMENTS))
