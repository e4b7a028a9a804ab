"""Memory and time of upcycling: a bf16 checkpoint of a Llama, and a model of 12 layers.

Each run is a process of its own, so that its peak is its own. `python -m benchmarks.moe_memory
FOLDER OUT METHOD` is what it runs.
"""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from benchmarks import timing
from benchmarks.fixtures import hf_large
from benchmarks.measure import GIB, MB, ROOT, Measurement, Row, Settings, at_most, held, shown

_RSS_BAR = 2 * GIB
_LLAMA = (16, 2048, 8192, 32000)
_TWO = (2, *_LLAMA[1:])
"""Two layers, for machines without the room: layers pass one by one, the peak is that of one."""
_SMALL = (12, 768, 3072, 32000)
_FREE_BYTES = 40_000 * MB
_SECONDS = 60.0
_MODULE = "benchmarks.moe_memory"
_EXPERTS = 8


def upcycle(folder: Path, out: Path, method: str) -> None:
    """Upcycles a folder of `transformers` and writes it as one of a family with experts."""
    warnings.simplefilter("ignore")
    from benchmarks.fixtures import vision_ops

    vision_ops.declare()
    import regraft
    from regraft.huggingface_sources import save_folder

    module = regraft.load(folder)
    passes = f"canonicalize,fuse,upcycle-ffn{{experts={_EXPERTS},method={method}}}"
    regraft.apply(module, passes, check="off")
    out.mkdir(parents=True, exist_ok=True)
    save_folder(module, out)


def _run(
    work: Path, shape: tuple[int, int, int, int], method: str
) -> tuple[timing.Finished, int, int]:
    """Returns how the run went, and the bytes of source and result."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    total = hf_large.make(work / "source", *shape)
    done = timing.run(
        [sys.executable, "-m", _MODULE, str(work / "source"), str(work / "out"), method],
        timeout_s=3600, cwd=ROOT,
    ).require_success(f"upcycle by `{method}`")  # fmt: skip
    kind = json.loads((work / "out" / "config.json").read_text())["model_type"]
    if kind != "mixtral":
        raise AssertionError(f"a Llama with experts was written as `{kind}`")
    written = sum(file.stat().st_size for file in (work / "out").glob("*.safetensors"))
    shutil.rmtree(work)
    return done, total, written


def _memory(settings: Settings) -> Iterator[Row]:
    work = settings.work / "moe-large"
    settings.work.mkdir(parents=True, exist_ok=True)
    whole = settings.again and shutil.disk_usage(settings.work).free > _FREE_BYTES
    shape = _LLAMA if whole else _TWO
    note = "all 16 layers" if whole else "two layers of this shape; `--again` takes all 16"
    for method in ("copy", "drop"):
        done, total, written = _run(work, shape, method)
        yield at_most(
            f"Llama of {total / 1e9:.1f} GB in bf16 to {_EXPERTS} experts of {written / 1e9:.1f} "
            f"GB by `{method}`: peak memory", done.peak_rss_bytes / MB, _RSS_BAR / MB, "MB", note,
        )  # fmt: skip
        yield shown(f"the same by `{method}`: time", done.wall_s, "s")
    done, _, written = _run(work, _SMALL, "copy")
    yield at_most(
        "12 layers of width 768 to 8 experts, load and writing included", done.wall_s, _SECONDS, "s"
    )
    yield held("what was written is larger than one gigabyte", written > 1e9)


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("memory", "peak memory and time of upcycling large models", _memory),
)

if __name__ == "__main__":
    upcycle(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
