"""Hugging Face folders: families that come back equal, a pruned one, memory of a large checkpoint.

Imported by `benchmarks.recovery`, which runs the measurements.
"""

import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import timing
from benchmarks.fixtures.hf_large import SEVEN_B, SMALL
from benchmarks.measure import GIB, MB, ROOT, Measurement, Row, Settings, at_least, at_most, shown

RSS_BAR_BYTES = 2 * GIB
FAMILIES_BAR = 10
_PASSES = "canonicalize,fold-norms,fuse"


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def comes_back_equal(family: str, work: Path) -> str:
    """Takes a family through the IR and back; returns what differs, nothing when all is equal."""
    import torch

    import regraft
    from benchmarks.fixtures import hf_families
    from regraft.huggingface_sources import save_folder

    source, result = _fresh(work / family / "source"), _fresh(work / family / "result")
    before = hf_families.save(family, source)
    module = regraft.load(source)
    regraft.apply(module, _PASSES, check="off")
    save_folder(module, result)  # compares the outputs of module and folder
    after, info = type(before).from_pretrained(result, output_loading_info=True)
    if any(info.values()):
        return f"not strict: {info}"
    old, new = before.state_dict(), after.state_dict()
    differ = [name for name in old if not torch.equal(old[name], new[name])]
    if differ:
        return f"{len(differ)} tensors differ, {differ[0]}"
    return "" if tokens(before) == tokens(after.eval()) else "other tokens"


def tokens(net: Any) -> list[list[int]]:
    """Returns what a decoder without encoder generates, nothing for other models."""
    import torch

    if not net.can_generate() or net.config.is_encoder_decoder:
        return []
    ids = torch.arange(3, 9).reshape(2, 3)
    found = net.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False,
        pad_token_id=0,
    )  # fmt: skip
    rows: list[list[int]] = found.tolist()
    return rows


def _families(settings: Settings) -> Iterator[Row]:
    warnings.simplefilter("ignore")  # deprecations between the packages
    from benchmarks.fixtures import hf_families

    equal = 0
    for family in hf_families.FAMILIES:
        differs = comes_back_equal(family, settings.work / "hf")
        equal += not differs
        yield shown(f"{family}: folder, module after `{_PASSES}`, folder", float(not differs),
                    "equal", differs)  # fmt: skip
    yield at_least("families that load strictly, with equal tensors and tokens", equal,
                   FAMILIES_BAR, "families", f"of {len(hf_families.FAMILIES)}")  # fmt: skip


def _large(settings: Settings) -> Iterator[Row]:
    work = _fresh(settings.work / "hf-large")
    free = shutil.disk_usage(work).free
    # the source is a file with holes: the result alone takes space
    sizes = SEVEN_B if free > 20_000 * MB else SMALL
    command = [sys.executable, "-m", "benchmarks.fixtures.hf_large"]
    timing.run(
        [*command, "make", str(work / "source"), *map(str, sizes)], timeout_s=60, cwd=ROOT
    ).require_success("write the checkpoint")
    done = timing.run(
        [*command, "change", str(work / "source"), str(work / "result")], timeout_s=900, cwd=ROOT
    ).require_success("change a layer")
    total = sum(file.stat().st_size for file in (work / "source").glob("*.safetensors"))
    shutil.rmtree(work)
    yield at_most(
        f"Llama of {total / 1e9:.1f} GB in bf16: load, change one matrix, save; peak memory",
        done.peak_rss_bytes / MB, RSS_BAR_BYTES / MB, "MB",
        "" if sizes == SEVEN_B else "too little free disk for 14 GB: the small shape",
    )  # fmt: skip
    yield shown("the same: time", done.wall_s, "s")


MEASUREMENTS = (
    Measurement("hf-families", "families of transformers through the IR and back", _families),
    Measurement("hf-memory", "memory of changing one layer of a 14 GB checkpoint", _large),
)
