"""Captures of `transformers` models: caches, mixtures of experts, dynamic batch and sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="captures are compared with PyTorch")
pytest.importorskip("transformers", reason="needs the extra `hf`")

import transformers as hf  # noqa: E402

from benchmarks.fixtures import vision_ops  # noqa: E402
from regraft.frontends.torch.capture import capture  # noqa: E402
from regraft.ir.errors import InputError  # noqa: E402
from regraft.ir.evaluate import evaluate  # noqa: E402
from regraft.ir.module import StateKind  # noqa: E402
from tests.frontends.torch.oracle import check_capture, compare  # noqa: E402

vision_ops.declare()  # where torchvision is installed without them, no model can be imported

SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 100,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
TEXT = {"input_ids": {0: "batch", 1: "seq"}, "attention_mask": {0: "batch", 1: "seq"}}
SIZES: tuple[Mapping[str, int], ...] = ({}, {"batch": 3, "seq": 4}, {"batch": 1, "seq": 9})


def text(rows: int = 2, tokens: int = 7) -> dict[str, Any]:
    ids = torch.arange(3, 3 + rows * tokens).reshape(rows, tokens)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def switch() -> Any:
    return hf.SwitchTransformersModel(
        hf.SwitchTransformersConfig(
            d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=4,
            num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, num_experts=4, vocab_size=100,
        )
    )  # fmt: skip


DECODERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)),
    # experts in one tensor: every expert computes every token
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(num_local_experts=4, **GROUPED)),
    "gpt_oss": lambda: hf.GptOssForCausalLM(
        hf.GptOssConfig(num_local_experts=4, num_experts_per_tok=2, **GROUPED)
    ),
    # a loop over the experts that some token chose
    "dbrx": lambda: hf.DbrxForCausalLM(
        hf.DbrxConfig(
            d_model=32, n_heads=4, n_layers=1, max_seq_len=64, vocab_size=100,
            ffn_config={"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2,
                        "hidden_size": 32},
            attn_config={"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        )
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # deprecations between these packages
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("llama", "mixtral") else pytest.mark.slow)
        for name in DECODERS
    ],
)
def test_decoders_equal_the_original_at_every_size(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = check_capture(
        DECODERS[name](), (), {**text(), "use_cache": False}, dynamic=TEXT, sizes=SIZES,
        folder=tmp_path,
    ).module  # fmt: skip
    assert "logits" in module.graph.output_names
    assert not module.assumptions


@pytest.mark.filterwarnings("ignore")  # deprecations between these packages
def test_a_cache_is_a_state(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED))
    cache = hf.DynamicCache()
    for layer in range(2):
        cache.update(torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8), layer)
    mask = torch.ones(2, 8, dtype=torch.long)
    module = check_capture(
        net, (),
        {"input_ids": text(2, 3)["input_ids"], "attention_mask": mask, "past_key_values": cache},
        dynamic={
            "input_ids": {0: "batch", 1: "seq"}, "attention_mask": {0: "batch", 1: "total"},
            "past_key_values": {0: "batch", 2: "past"},
        },
        sizes=({}, {"batch": 3, "seq": 4, "past": 6}), folder=tmp_path,
    ).module  # fmt: skip
    assert {(state.input, state.output) for state in module.states} == {
        (f"past_key_values.{layer}.{part}", f"present.{layer}.{part}")
        for layer in range(2)
        for part in ("key", "value")
    }
    assert {state.kind for state in module.states} == {StateKind.KV_CACHE}
    assert str(module.input_types["past_key_values.0.key"]) == "f32[batch, 2, past, 8]"
    assert str(module.input_types["attention_mask"]) == "i64[batch, past + seq]"


@pytest.mark.filterwarnings("ignore")  # deprecations between these packages
def test_a_cache_of_a_window_says_how_its_length_is_free(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = hf.MistralForCausalLM(hf.MistralConfig(**GROUPED, sliding_window=4)).eval()
    past, ids = text(2, 6)["input_ids"], text(2, 3)["input_ids"]
    windowed, whole = hf.DynamicCache(config=net.config), hf.DynamicCache()
    with torch.no_grad():
        for cache in (windowed, whole):
            net(past, past_key_values=cache)
    axes = {"input_ids": {0: "batch", 1: "seq"}, "past_key_values": {0: "batch", 2: "past"}}
    given = {"input_ids": ids, "past_key_values": windowed}
    with pytest.raises(InputError, match=r"axis 2 of `past_key_values.key_cache.0`") as caught:
        capture(net, (), given, dynamic_shapes=axes)
    assert "without a config" in str(caught.value.hint)
    module = check_capture(
        net, (), {"input_ids": ids, "past_key_values": whole}, dynamic=axes,
        sizes=({}, {"batch": 3, "seq": 5, "past": 9}, {"past": 1, "seq": 1}), folder=tmp_path,
    ).module  # fmt: skip
    inputs = {"input_ids": ids.numpy()} | {
        f"past_key_values.{i}.{part}": value.numpy()
        for i, layer in enumerate(whole.layers)
        for part, value in (("key", layer.keys), ("value", layer.values))
    }
    with torch.no_grad():
        expected = net(ids, past_key_values=windowed).logits.numpy()
    compare(evaluate(module, inputs)["logits"], expected, "logits")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # deprecations between these packages
def test_experts_of_modules_of_their_own_equal_the_original(tmp_path: Path) -> None:
    torch.manual_seed(0)
    decoder = {f"decoder_{name}": value for name, value in text(2, 4).items()}
    check_capture(
        switch(), (), {**text(), **decoder, "use_cache": False},
        dynamic=TEXT
        | {name: {0: "batch", 1: "out"} for name in decoder},
        sizes=({}, {"batch": 3, "seq": 4, "out": 2}), folder=tmp_path,
    )  # fmt: skip


def test_the_experts_of_the_module_are_left_as_they_were() -> None:
    from regraft.frontends.torch.experts import static_experts

    net = DECODERS["mixtral"]()
    before = [dict(vars(part)) for part in net.modules()]
    with static_experts(net):
        assert [dict(vars(part)) for part in net.modules()] != before
    assert [dict(vars(part)) for part in net.modules()] == before
