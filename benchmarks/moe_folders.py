"""Folders of `transformers` with experts: loaded strictly, do they generate the same tokens?

Dense folders are upcycled and written as the family with experts that belongs to them; folders
with experts are loaded, raised and written again. Epsilons and bases of rotary embedding differ
from the defaults of both families, so that a value that is not copied shows.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Measurement, Row, Settings, at_most, held

_BASE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 96, "rms_norm_eps": 3e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
}  # fmt: skip
_FOUR = {"num_experts": 4, "num_experts_per_tok": 2}
_ENDS = {"pad_token_id": 0, "eos_token_id": 1}
_WIDTH = {"moe_intermediate_size": 24}
UPCYCLE = "canonicalize,fuse,upcycle-ffn{experts=4,top-k=2}"
RAISE = "canonicalize,fuse,canonicalize"
_BAR = 1e-6
"""Relative, in f32: two layers, sums of at most 96 products."""
_TOKENS = 16
COPIED = (
    "rms_norm_eps", "rope_parameters", "num_key_value_heads", "tie_word_embeddings", "vocab_size",
    "max_position_embeddings", "hidden_act", "initializer_range",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """One folder.

    Args:
        source: Prefix of the classes of the source.
        result: That of the result.
        passes: What is applied.
        config: Values of the source's config.
    """

    source: str
    result: str
    passes: str
    config: dict[str, Any]


CASES: dict[str, Case] = {
    "llama": Case("Llama", "Mixtral", UPCYCLE, {}),
    "mistral": Case("Mistral", "Mixtral", UPCYCLE, {"sliding_window": None}),
    "qwen2": Case("Qwen2", "Qwen2Moe", UPCYCLE, {"tie_word_embeddings": True}),
    "qwen3": Case("Qwen3", "Qwen3Moe", UPCYCLE, {"head_dim": 8}),
    "olmo2": Case("Olmo2", "FlexOlmo", UPCYCLE, _ENDS),
    "mixtral": Case("Mixtral", "Mixtral", RAISE, {"num_local_experts": 4}),
    "qwen2_moe": Case("Qwen2Moe", "Qwen2Moe", RAISE,
                      {**_FOUR, **_WIDTH, "shared_expert_intermediate_size": 40}),
    "qwen3_moe": Case("Qwen3Moe", "Qwen3Moe", RAISE, {**_FOUR, **_WIDTH, "head_dim": 8}),
    "olmoe": Case("Olmoe", "Olmoe", RAISE, {**_FOUR, **_ENDS}),
}  # fmt: skip


def make(folder: Path, case: Case) -> Any:
    """Writes the source's folder; returns its model."""
    import torch
    import transformers as tf
    from safetensors.torch import save_file

    torch.manual_seed(0)
    config = getattr(tf, f"{case.source}Config")(**{**_BASE, **case.config})
    net = getattr(tf, f"{case.source}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    if case.passes == RAISE:
        net.save_pretrained(folder)  # writes experts one by one
        return net
    folder.mkdir()
    config.save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    content["architectures"] = [type(net).__name__]
    (folder / "config.json").write_text(json.dumps(content))
    tied = case.config.get("tie_word_embeddings", False)
    tensors = {
        key: value.contiguous()
        for key, value in net.state_dict().items()
        if not (tied and key == "lm_head.weight")
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return net


@dataclass(frozen=True, slots=True)
class Compared:
    """A written folder against its source.

    Args:
        name: Class of what was loaded.
        problems: Keys that loading missed or did not expect, and config values that differ.
        error: Largest difference of logits, relative.
        same_tokens: Whether greedy search gives the same tokens.
    """

    name: str
    problems: tuple[str, ...]
    error: float
    same_tokens: bool


def compared(case: Case, work: Path) -> Compared:
    """Writes the source, converts it, loads the result, and compares."""
    import torch
    import transformers as tf

    import regraft
    from regraft.huggingface_sources import save_folder

    net = make(work / "source", case)
    module = regraft.load(work / "source")
    regraft.apply(module, case.passes, check="off")
    out = work / "out"
    out.mkdir()
    save_folder(module, out)
    made, info = tf.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    before, after = net.config.to_dict(), made.eval().config.to_dict()
    problems = [f"{kind}: {keys}" for kind, keys in info.items() if keys]
    problems += [key for key in COPIED if before.get(key) != after.get(key)]
    ids = torch.randint(2, 96, (2, 9))
    expected, result = net(ids).logits, made(ids).logits
    given: dict[str, Any] = {"max_new_tokens": _TOKENS, "do_sample": False, "pad_token_id": 0}
    tokens = [each.generate(ids, eos_token_id=None, **given) for each in (net, made)]
    return Compared(
        type(made).__name__, tuple(problems),
        float((expected - result).abs().max() / expected.abs().max()),
        bool(torch.equal(*tokens)),
    )  # fmt: skip


def _folders(settings: Settings) -> Iterator[Row]:
    from benchmarks.fixtures import vision_ops  # imports torch

    vision_ops.declare()
    warnings.filterwarnings("ignore")  # deprecations between these packages
    for kind, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            found = compared(case, Path(folder))
        title = f"{kind} as {case.result}"
        fits = found.name == f"{case.result}ForCausalLM" and not found.problems
        yield held(f"{title}: loads strictly, config values copied", fits,
                   "; ".join(found.problems) or found.name)  # fmt: skip
        yield at_most(f"{title}: logits", found.error, _BAR, "relative")
        yield held(f"{title}: greedy search gives the same {_TOKENS} tokens", found.same_tokens)


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("folders", "folders of transformers with experts", _folders),
)
