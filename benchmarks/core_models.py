"""The trained models of the core set: converted, compared, printed, parsed, canonicalized twice.

Outputs are compared by the rule of docs/interface.md on real inputs at every registered size, in
both profiles. The text round trip and the idempotence of canonicalize are also held on the light
models of ONNX's backend suite.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx

import regraft
from benchmarks import models
from benchmarks.measure import Measurement, Row, Settings, held, shown
from regraft.backends.onnx.runtime import OrtRunner
from regraft.ir.module import Module
from regraft.ir.text import parse_module, print_module
from regraft.passes.check.compare import compare_outputs
from regraft.passes.manager import count_nodes
from tests.conformance.suites import suite

TARGETS = ("onnx", "ort-cpu")


def measure(settings: Settings) -> Iterator[Row]:
    """Yields rows for every model of the core set and every light model."""
    with tempfile.TemporaryDirectory() as folder:
        for model in models.CORE:
            path = models.find(model)
            given = models.samples(model)
            for target in TARGETS:
                yield from _converted(model.name, path, target, given, Path(folder))
            yield from _text_and_rest(model.name, regraft.load(path))
    for case in suite("real"):
        yield from _text_and_rest(case.name, regraft.load(onnx.ModelProto.FromString(case.model)))


def _converted(
    name: str, path: Path, target: str, given: list[models.Sample], folder: Path
) -> Iterator[Row]:
    out = folder / f"{name}-{target}.onnx"
    result = regraft.convert(path, out, target=target, samples=given)
    reference, plain, ours = OrtRunner(path), OrtRunner(path, optimize=False), OrtRunner(out)
    failures = []
    for number, sample in enumerate(given):
        diffs = compare_outputs(reference(sample), ours(sample), plain=plain(sample))
        failures += [f"sample {number}, `{d.name}`: {d.reason}" for d in diffs if not d.ok]
        if not any(d.counts for d in diffs):
            failures.append(f"sample {number} proves nothing")
    nodes = result.report["nodes"]
    note = f"{nodes['before']} nodes to {nodes['after']}, checked: {result.check.verified}"
    yield held(f"{name}, {target}: equal outputs", not failures, "; ".join(failures) or note)


def _text_and_rest(name: str, module: Module) -> Iterator[Row]:
    yield held(f"{name}: text round trip is byte-identical", _round_trip(module))
    before = count_nodes(module.graph)
    regraft.apply(module, "canonicalize", check="off")
    first = print_module(module)
    yield shown(f"{name}: nodes left by canonicalize", count_nodes(module.graph), f"of {before}")
    (record,) = regraft.apply(module, "canonicalize", check="off")
    same = print_module(module) == first and not record.changed
    yield held(f"{name}: canonicalize is idempotent", same)
    yield held(f"{name}: text of the result comes back byte-identical", _round_trip(module))


def _round_trip(module: Module) -> bool:
    text = print_module(module)
    return print_module(parse_module(text, weights=module.weights)) == text


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("models", "the trained models of the core set, and nine light ones", measure),
)
