"""`prune` with `--target hf` writes folders that the library's class of a smaller config loads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="captures PyTorch models")

from benchmarks.fixtures import vision_ops  # noqa: E402  # before transformers

transformers = pytest.importorskip("transformers", reason="needs the library's classes")
vision_ops.declare()

import regraft  # noqa: E402
from regraft.ir.evaluate import evaluate  # noqa: E402

BASE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
        "intermediate_size": 128, "vocab_size": 100, "max_position_embeddings": 64}  # fmt: skip
GROUPED = BASE | {"num_key_value_heads": 4, "use_cache": False}
CASES: dict[str, tuple[str, Any]] = {
    "llama": ("LlamaForCausalLM", lambda: transformers.LlamaConfig(**GROUPED)),
    "qwen3": ("Qwen3ForCausalLM", lambda: transformers.Qwen3Config(**GROUPED, head_dim=16)),
    "bert": ("BertForSequenceClassification", lambda: transformers.BertConfig(**BASE)),
    "gpt2": (
        "GPT2LMHeadModel",
        lambda: transformers.GPT2Config(
            n_embd=64, n_layer=2, n_head=8, vocab_size=100, n_positions=64, n_inner=128,
            use_cache=False, bos_token_id=0, eos_token_id=0,
        ),
    ),
    "t5": (
        "T5EncoderModel",
        lambda: transformers.T5Config(
            d_model=64, d_kv=8, num_heads=8, d_ff=128, num_layers=2, vocab_size=100
        ),
    ),
}  # fmt: skip
QUICK = ("llama", "bert")


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES],
)
def test_a_folder_pruned_by_default_loads_with_the_same_outputs(name: str, tmp_path: Path) -> None:
    class_name, config = CASES[name]
    cls = getattr(transformers, class_name)
    torch.manual_seed(0)
    dense = cls(config()).eval()
    with torch.no_grad():  # biases and gains start out as 0 and 1, which would hide what is cut
        for parameter in dense.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    dense.save_pretrained(tmp_path / "source")
    result = regraft.convert(
        str(tmp_path / "source"), str(tmp_path / "small"), target="hf",
        passes="canonicalize,fuse,prune{target=flops:0.6}",
    )  # fmt: skip
    (target,) = result.report["targets"]
    assert target["met"]
    small = cls.from_pretrained(tmp_path / "small").eval()
    count, whole = (sum(p.numel() for p in net.parameters()) for net in (small, dense))
    assert count < 0.85 * whole
    ids = torch.randint(3, 100, (2, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = small(ids)[0].numpy()
    feeds = {str(value.name): np.ones((2, 8), np.int64) for value in result.module.graph.inputs}
    feeds["input_ids"] = ids.numpy()
    if "token_type_ids" in feeds:
        feeds["token_type_ids"][...] = 0
    ours = evaluate(result.module, feeds)[result.module.graph.output_names[0]]
    # f32 sums in other orders, some hundred terms deep
    assert np.abs(ours - theirs).max() <= 2e-5 * np.abs(theirs).max()
