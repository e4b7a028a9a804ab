"""Dense folders that become mixtures of experts: loaded strictly, they generate the same tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="folders are loaded with PyTorch")
pytest.importorskip("transformers", reason="needs the extra `hf`")

from benchmarks.fixtures import vision_ops  # noqa: E402

vision_ops.declare()  # where torchvision is installed without them, no model can be imported

import transformers as tf  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import regraft  # noqa: E402
from regraft.huggingface_sources import save_folder  # noqa: E402
from regraft.ir.errors import UnsupportedError  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations between these packages

_BASE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 96,
}  # fmt: skip
_ROPE = {"rope_type": "default", "rope_theta": 50000.0}
_FOUR = {"num_experts": 4, "num_experts_per_tok": 2}
_UPCYCLE = "canonicalize,fuse,upcycle-ffn{experts=4,top-k=2}"

# epsilon and base of rotary embedding differ from the defaults of both families
CASES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "llama": ("Llama", {"rms_norm_eps": 3e-6, "rope_parameters": _ROPE}, "Mixtral", _UPCYCLE),
    "mistral": ("Mistral", {"sliding_window": None}, "Mixtral", _UPCYCLE),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}, "Qwen2Moe", _UPCYCLE),
    "qwen3": ("Qwen3", {"head_dim": 8}, "Qwen3Moe", _UPCYCLE),
    "olmoe": ("Olmoe", {**_FOUR, "pad_token_id": 0, "eos_token_id": 1}, "Olmoe",
              "canonicalize,fuse,canonicalize"),
    "qwen3_moe": ("Qwen3Moe", {**_FOUR, "head_dim": 8, "moe_intermediate_size": 24}, "Qwen3Moe",
                  "canonicalize,fuse,canonicalize"),
}  # fmt: skip


def _source(folder: Path, name: str, extra: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = getattr(tf, f"{name}Config")(**{**_BASE, "num_key_value_heads": 2, **extra})
    net = getattr(tf, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    config.save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    content["architectures"] = [type(net).__name__]
    (folder / "config.json").write_text(json.dumps(content))
    tied = extra.get("tie_word_embeddings", False)
    tensors = {
        key: value.contiguous()
        for key, value in net.state_dict().items()
        if not (tied and key == "lm_head.weight")
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return net


@pytest.mark.parametrize("kind", CASES)
def test_folder_with_experts_loads_strictly_and_generates_the_same(
    kind: str, tmp_path: Path
) -> None:
    name, extra, wanted, passes = CASES[kind]
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    net = _source(source, name, extra)
    module = regraft.load(source)
    regraft.apply(module, passes, check="off")
    save_folder(module, out)
    made, info = tf.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert type(made).__name__ == f"{wanted}ForCausalLM"
    assert not any(info.values()), info
    before, after = net.config.to_dict(), made.config.to_dict()
    for key in ("rms_norm_eps", "rope_parameters", "num_key_value_heads", "tie_word_embeddings",
                "max_position_embeddings", "hidden_act"):  # fmt: skip
        assert after[key] == before[key], key
    ids = torch.randint(2, 96, (2, 9))
    expected, result = net(ids).logits, made.eval()(ids).logits
    # f32 through two layers, sums of at most 96 products
    assert float((expected - result).abs().max()) <= 1e-6 * float(expected.abs().max())
    given: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    tokens = [each.generate(ids, eos_token_id=None, **given) for each in (net, made)]
    assert torch.equal(*tokens)


def test_experts_that_no_family_has_are_refused_with_the_reason(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    _source(source, "Llama", {})
    module = regraft.load(source)
    passes = "canonicalize,fuse,upcycle-ffn{experts=4,scoring=sigmoid,every=2}"
    regraft.apply(module, passes, check="off")
    with pytest.raises(UnsupportedError, match="its scores are `sigmoid`"):
        save_folder(module, out)
