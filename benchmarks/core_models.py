"""The trained models of the core set: converted, compared, printed, parsed, canonicalized twice.

Outputs are compared by the rule of docs/interface.md on real inputs at every registered size, in
both profiles; on generated ones for the light models of ONNX's backend suite. The text round trip
and the idempotence of canonicalize are held on all.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx

import regraft
from benchmarks import models
from benchmarks.measure import Measurement, Row, Settings, held, shown
from regraft.ir.module import Module
from regraft.ir.text import parse_module, print_module
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
            proto = onnx.ModelProto.FromString(case.model)
            for target in TARGETS:
                out = Path(folder) / f"{case.name}-{target}.onnx"
                check = regraft.convert(proto, out, target=target).check
                equal = check.ok and check.verified == "module"
                yield held(f"{case.name}, {target}: equal outputs", equal, check.verified)
            yield from _text_and_rest(case.name, regraft.load(proto))


def _converted(
    name: str, path: Path, target: str, given: list[models.Sample], folder: Path
) -> Iterator[Row]:
    out = folder / f"{name}-{target}.onnx"
    result = regraft.convert(path, out, target=target, samples=given)
    failures = []
    for number, sample in enumerate(given):
        report = regraft.compare(path, out, samples=[sample])
        failures += [f"sample {number}, `{d.name}`: {d.reason}" for d in report.outputs if not d.ok]
        if report.verified.startswith("no"):
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
