"""Decoders with a cache through ONNX Runtime, and smaller models as folders.

Imported by `benchmarks.recovery`, which runs the measurements.
"""

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Measurement, Row, Settings, at_least, held, shown

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gpt2")
NEW = 16
PRUNED = "canonicalize,fuse,prune{target=params:0.8}"


def generate(net: Any, ids: Any) -> Any:
    """Returns the tokens of greedy search in transformers, i64[B, S + NEW]."""
    import torch

    net.generation_config.eos_token_id = None  # random models say it early
    found = net.generate(
        torch.from_numpy(ids), attention_mask=torch.ones(ids.shape, dtype=torch.int64),
        max_new_tokens=NEW, do_sample=False, pad_token_id=0,
    )  # fmt: skip
    return found.numpy()


def through_cache(file: Path, ids: Any) -> Any:
    """Returns the tokens of greedy search through a graph that takes and returns a cache.

    The text goes through it with an empty cache, every further token by itself.
    """
    from regraft.backends.onnx.runtime import OrtRunner

    run = OrtRunner(file)
    cache = {
        each.name: np.zeros((len(ids), each.shape[1], 0, each.shape[3]), np.float32)
        for each in run.session.get_inputs() if each.name.startswith("past_key_values")
    }  # fmt: skip
    fresh, row = ids, ids
    for _ in range(NEW):
        outputs = run({"input_ids": fresh, "attention_mask": np.ones(row.shape, np.int64), **cache})
        fresh = outputs["logits"][:, -1:].argmax(-1)
        row = np.concatenate([row, fresh], 1)
        cache = {name: outputs[name.replace("past_key_values", "present")] for name in cache}
    return row


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _decode(settings: Settings) -> Iterator[Row]:
    warnings.simplefilter("ignore")  # deprecations between the packages
    import regraft
    from benchmarks.fixtures import hf_families

    ids, equal = np.arange(3, 13).reshape(2, 5), 0
    for family in FAMILIES:
        work = _fresh(settings.work / "hf-decode" / family)
        net = hf_families.save(family, work / "source")
        regraft.convert(f"{work / 'source'}#decode", work / "out")
        same = np.array_equal(through_cache(work / "out" / "model.onnx", ids), generate(net, ids))
        equal += same
        yield shown(f"{family}: {NEW} tokens through a cache in ONNX Runtime", float(same), "equal")
    yield at_least(
        "decoders whose tokens are those of `generate`", equal, len(FAMILIES), "families"
    )


def _pruned(settings: Settings) -> Iterator[Row]:
    warnings.simplefilter("ignore")  # deprecations between the packages
    import transformers

    import regraft
    from benchmarks.fixtures import hf_families

    work = _fresh(settings.work / "hf-pruned")
    before = hf_families.save("llama", work / "source")
    regraft.convert(work / "source", work / "small", target="hf", passes=PRUNED)
    net, info = transformers.LlamaForCausalLM.from_pretrained(
        work / "small", output_loading_info=True
    )
    yield held("a pruned Llama loads strictly", not any(info.values()))
    sizes = [sum(p.numel() for p in each.parameters()) for each in (before, net)]
    config = net.config
    widths = f"{config.hidden_size} wide, {config.intermediate_size} inside"
    yield shown("its parameters", sizes[1], "", f"of {sizes[0]:,}; the config says {widths}")
    regraft.convert(f"{work / 'small'}#decode", work / "decode")
    ids = np.arange(3, 13).reshape(2, 5)
    same = np.array_equal(through_cache(work / "decode" / "model.onnx", ids), generate(net, ids))
    yield held("it generates the same tokens from the folder and in ONNX Runtime", same)


MEASUREMENTS = (
    Measurement("hf-decode", "decoders with a cache through ONNX Runtime", _decode),
    Measurement("hf-pruned", "a pruned Llama as a folder of transformers", _pruned),
)
