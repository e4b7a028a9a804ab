"""Memory of quantizing large models: a bf16 checkpoint of a 7B Llama, an ONNX file of 2 GB.

Each run is a process of its own, so that its peak is its own. `python -m benchmarks.quant_memory
checkpoint FOLDER OUT` is what it runs.
"""

import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from benchmarks import timing
from benchmarks.fixtures import hf_large
from benchmarks.measure import GIB, MB, ROOT, Measurement, Row, Settings, at_most, shown
from regraft.ir.module import Module
from regraft.passes.protocol import Samples

_RSS_BAR = 2 * GIB
_WIDE = (2, *hf_large.SEVEN_B[1:])
"""Two layers of a 7B Llama, for machines without the time: layers pass one by one, so that the peak
is that of the widest matrix (words by width) whatever their number."""
_FREE_BYTES = 30_000 * MB
_ONE, _TWO = (1, *hf_large.SEVEN_B[1:]), (2, *hf_large.SEVEN_B[1:])
"""Layers of a 7B Llama as they are, and few of them: one after the other is rounded, so that their
number does not change the peak, and each takes minutes."""
_SAMPLES, _TOKENS = 16, 64
_MODULE, _STOCK = "benchmarks.quant_memory", "benchmarks.quant_stock_worker"
_ONNX_BYTES = 2_254_857_830  # 2.1 GiB


def checkpoint(folder: Path, out: Path) -> None:
    """Quantizes a folder of `transformers` to 4 bits without data, and saves it."""
    warnings.simplefilter("ignore")
    from benchmarks.fixtures import vision_ops

    vision_ops.declare()
    import regraft

    _quantize(regraft.load(folder), out)


def gptq(folder: Path, out: Path) -> None:
    """Quantizes a folder of `transformers` to 4 bits by GPTQ, and saves it."""
    warnings.simplefilter("ignore")
    import numpy as np

    from benchmarks.fixtures import vision_ops

    vision_ops.declare()
    import regraft

    rng = np.random.default_rng(0)
    module = regraft.load(folder)
    sizes = {"input_ids": 1000, "attention_mask": 1}
    samples = [
        {
            str(value.name): np.ones((1, _TOKENS), np.int64)
            if sizes[str(value.name)] == 1
            else rng.integers(0, sizes[str(value.name)], (1, _TOKENS))
            for value in module.graph.inputs
        }
        for _ in range(_SAMPLES)
    ]
    _quantize(module, out, samples)


def file(path: Path, out: Path) -> None:
    """Quantizes an ONNX file to 4 bits without data, and saves it."""
    import regraft

    _quantize(regraft.load(path), out)


def _quantize(module: Module, out: Path, samples: Samples = ()) -> None:
    import regraft
    from regraft.backends.onnx.activations import OrtActivations
    from regraft.passes.protocol import Context
    from regraft.passes.quantization import Quantize

    out.mkdir(parents=True, exist_ok=True)
    regraft.apply(module, "canonicalize", check="off")
    ctx = Context(work_dir=out, samples=samples, activations=OrtActivations() if samples else None)
    Quantize(weights="uint4", method="gptq" if samples else "round").run(module, ctx)
    regraft.apply(module, "legalize{target=ort-cpu}", check="off")
    regraft.save(module, out / "model.onnx", target="ort-cpu")


def _checkpoint(settings: Settings) -> Iterator[Row]:
    work = settings.work / "quant-large"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    whole = settings.again and shutil.disk_usage(work).free > _FREE_BYTES
    shape = hf_large.SEVEN_B if whole else _WIDE
    total = hf_large.make(work / "source", *shape)
    # of equal weights one would be written for all
    timing.run(
        [sys.executable, "-m", "benchmarks.fixtures.hf_large", "fill", str(work / "source")],
        timeout_s=3600, cwd=ROOT,
    ).require_success("fill the checkpoint")  # fmt: skip
    done = timing.run(
        [sys.executable, "-m", _MODULE, "checkpoint", str(work / "source"), str(work / "out")],
        timeout_s=3600, cwd=ROOT,
    ).require_success("quantize the checkpoint")  # fmt: skip
    shutil.rmtree(work)
    yield at_most(
        f"Llama of {total / 1e9:.1f} GB in bf16 to 4 bits, no data: peak memory",
        done.peak_rss_bytes / MB, _RSS_BAR / MB, "MB",
        "all layers" if whole else "two layers of the 7B shape; `--again` takes all 32",
    )  # fmt: skip
    yield shown("the same: time", done.wall_s, "s")


def _gptq(settings: Settings) -> Iterator[Row]:
    work = settings.work / "quant-gptq"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    shape = _TWO if settings.again else _ONE
    hf_large.make(work / "source", *shape)
    hf_large.fill(work / "source")
    done = timing.run(
        [sys.executable, "-m", _MODULE, "gptq", str(work / "source"), str(work / "out")],
        timeout_s=3600, cwd=ROOT,
    ).require_success("quantize the checkpoint by GPTQ")  # fmt: skip
    shutil.rmtree(work)
    layers, width, inner, words = shape
    block = 2 * (4 * width**2 + 3 * width * inner)
    yield at_most(
        f"Llama {width} and {inner} wide, {words} words, to 4 bits by GPTQ: peak memory",
        done.peak_rss_bytes / MB, (block + 2 * GIB) / MB, "MB",
        f"bar: a layer in bf16 ({block / MB:.0f} MB) and 2 GiB; {layers} of 32 layers, "
        f"{_SAMPLES} samples of {_TOKENS} tokens",
    )  # fmt: skip
    yield shown("the same: time", done.wall_s, "s")


def _file(settings: Settings) -> Iterator[Row]:
    from benchmarks import big

    work = settings.work / "quant-file"
    work.mkdir(parents=True, exist_ok=True)
    source = work / "big.onnx"
    if not source.exists():
        big.write(source, _ONNX_BYTES)
    ours = timing.run(
        [sys.executable, "-m", _MODULE, "file", str(source), str(work / "ours")],
        timeout_s=1200, cwd=ROOT,
    ).require_success("quantize the file")  # fmt: skip
    shutil.rmtree(work / "ours")
    converted = timing.run(
        [
            sys.executable, "-m", "regraft", "convert", str(source), "-o", str(work / "converted"),
            "--passes", "canonicalize,quantize{weights=uint4}",
        ],
        timeout_s=1200, cwd=ROOT,
    ).require_success("convert the file")  # fmt: skip
    shutil.rmtree(work / "converted")
    theirs = timing.run(
        [settings.peers_python, "-m", _STOCK, str(source), str(work / "stock")],
        timeout_s=1200, cwd=ROOT,
    ).require_success("ONNX Runtime's quantizer")  # fmt: skip
    shutil.rmtree(work)
    yield at_most("ONNX of 2.1 GiB to 4 bits: time", ours.wall_s, theirs.wall_s, "s",
                  "bar: ONNX Runtime's quantizer")  # fmt: skip
    yield at_most("ONNX of 2.1 GiB to 4 bits: peak memory", ours.peak_rss_bytes / MB,
                  theirs.peak_rss_bytes / 3 / MB, "MB", "a third of ONNX Runtime's")  # fmt: skip
    note = "ranges are searched, and the result is compared with the source"
    yield shown("`regraft convert` of the same: time", converted.wall_s, "s", note)
    yield at_most("`regraft convert` of the same: peak memory", converted.peak_rss_bytes / MB,
                  theirs.peak_rss_bytes / 3 / MB, "MB", "a third of ONNX Runtime's")  # fmt: skip


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("memory-checkpoint", "a bf16 checkpoint to 4 bits without data", _checkpoint),
    Measurement("memory-gptq", "a bf16 checkpoint to 4 bits by GPTQ", _gptq),
    Measurement("memory-file", "an ONNX file of 2.1 GiB to 4 bits, beside ONNX Runtime's", _file),
)

if __name__ == "__main__":
    _VERBS = {"checkpoint": checkpoint, "gptq": gptq, "file": file}
    _VERBS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
