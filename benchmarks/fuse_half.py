"""fp16 files of the core set: they run, are half the size, and stay within the noise of rounding.

Every conversion is checked on real inputs as `convert` does: an output outside its noise floor is
exit 3 and names the node. Half the size is measured twice: the bytes of all float weights against
those after the same passes without the cast, and the file against the source's.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import regraft
from benchmarks import models
from benchmarks.measure import Measurement, Row, Settings, at_most, held, shown
from benchmarks.simplify_once import FUSING
from regraft.backends.onnx.runtime import OrtRunner
from regraft.ir.errors import CheckError
from regraft.ir.module import Module
from regraft.ir.types import DType
from regraft.ir.verify import verify

QUANTIZED = ("minilm-int8",)
"""Models whose weights are 8 bits already: what is small stays."""

_FLOATS = (DType.F32, DType.F16, DType.F64)


def measure(settings: Settings) -> Iterator[Row]:
    """Yields rows for every model of the core set."""
    with tempfile.TemporaryDirectory() as folder:
        for model in models.CORE:
            yield from _model(model, Path(folder) / f"{model.name}.onnx")


def _model(model: models.RealModel, out: Path) -> Iterator[Row]:
    path, given = models.find(model), models.samples(model)
    try:
        result = regraft.convert(path, out, dtype="fp16", passes=FUSING, samples=given)
    except CheckError as error:  # exit 3: a result that counts, when the node is named
        yield held(f"{model.name}, fp16: refused, the node named", "`" in str(error), str(error))
        return
    diffs = [diff for diff in result.check.outputs if not diff.ok]
    note = f"checked: {result.check.verified}, {result.check.num_samples} samples"
    yield held(f"{model.name}, fp16: every output within its noise floor", not diffs, note)
    runner = OrtRunner(out)
    finite = all(
        np.isfinite(array).all()
        for sample in given
        for array in runner(sample).values()
        if array.dtype.kind == "f"
    )
    yield held(f"{model.name}, fp16: the file runs, outputs finite", finite)
    problems = verify(result.module, "full")
    note = "; ".join(map(str, problems[:2]))
    yield held(f"{model.name}, fp16: every type is what inference says", not problems, note)
    plain = regraft.load(path)
    regraft.apply(plain, FUSING, check="off")
    before, after = _float_bytes(plain), _float_bytes(result.module)
    size = out.stat().st_size / path.stat().st_size
    files = f"{path.stat().st_size:,} to {out.stat().st_size:,} bytes"
    if model.name in QUANTIZED:
        yield shown(f"{model.name}, fp16: file / source", size, "x", f"8 bits stay; {files}")
        return
    name = f"{model.name}, fp16: bytes of float weights / the same passes in fp32"
    yield at_most(name, after / before, 0.51, "x", f"{before:,} to {after:,} bytes")
    yield at_most(f"{model.name}, fp16: file / source", size, 0.51, "x", files)


def _float_bytes(module: Module) -> int:
    stored = (module.weights[name] for name in module.weights)
    return sum(weight.nbytes for weight in stored if weight.dtype in _FLOATS)


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("half", "fp16 files of the core set: equal, half the size", measure),
)
