"""The families that may change size, by `model_type`."""

from __future__ import annotations

from collections.abc import Mapping

from regraft.backends.huggingface.family import Family, Heads, linear, merged, norm

_WIDE, _DEEP, _TALL = "hidden_size", "num_hidden_layers", "intermediate_size"
_Q, _KV = "(num_attention_heads .)", "(num_key_value_heads .)"

_LLAMA = Family(
    merged(
        {"embed_tokens.weight": f"vocab_size {_WIDE}", "lm_head.weight": f"vocab_size {_WIDE}"},
        linear("self_attn.q_proj", _Q, _WIDE),
        linear("self_attn.k_proj", _KV, _WIDE),
        linear("self_attn.v_proj", _KV, _WIDE),
        linear("self_attn.o_proj", _WIDE, _Q),
        linear("mlp.gate_proj", _TALL, _WIDE),
        linear("mlp.up_proj", _TALL, _WIDE),
        linear("mlp.down_proj", _WIDE, _TALL),
        {
            f"{name}.weight": _WIDE
            for name in (
                "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                "post_feedforward_layernorm", "norm",
            )
        },
        {"score.weight": f"_ {_WIDE}"},
    ),
    {"layers": _DEEP},
    (Heads(_WIDE, "num_attention_heads", "head_dim", "num_key_value_heads"),),
    ("layer_types",),
)  # fmt: skip

_BERT = Family(
    merged(
        {
            "embeddings.word_embeddings.weight": f"vocab_size {_WIDE}",
            "embeddings.position_embeddings.weight": f"max_position_embeddings {_WIDE}",
            "embeddings.token_type_embeddings.weight": f"type_vocab_size {_WIDE}",
        },
        norm("LayerNorm", _WIDE),
        linear("attention.self.query", _Q, _WIDE),
        linear("attention.self.key", _Q, _WIDE),
        linear("attention.self.value", _Q, _WIDE),
        linear("attention.output.dense", _WIDE, _Q),
        linear("intermediate.dense", _TALL, _WIDE),
        linear("layer.*.output.dense", _WIDE, _TALL),
        linear("pooler.dense", _WIDE, _WIDE),
        linear("predictions.transform.dense", _WIDE, _WIDE),
        linear("predictions.decoder", "vocab_size", _WIDE),
        {"predictions.bias": "vocab_size"},
        linear("classifier.dense", _WIDE, _WIDE),
        linear("classifier.out_proj", "_", _WIDE),
        linear("classifier", "_", _WIDE),
        linear("qa_outputs", "_", _WIDE),
        linear("lm_head.dense", _WIDE, _WIDE),
        norm("lm_head.layer_norm", _WIDE),
        linear("lm_head.decoder", "vocab_size", _WIDE),
        {"lm_head.bias": "vocab_size"},
    ),
    {"encoder.layer": _DEEP},
    (Heads(_WIDE, "num_attention_heads"),),
)

_DISTILBERT = Family(
    merged(
        {
            "embeddings.word_embeddings.weight": "vocab_size dim",
            "embeddings.position_embeddings.weight": "max_position_embeddings dim",
        },
        norm("LayerNorm", "dim"),
        linear("attention.q_lin", "(n_heads .)", "dim"),
        linear("attention.k_lin", "(n_heads .)", "dim"),
        linear("attention.v_lin", "(n_heads .)", "dim"),
        linear("attention.out_lin", "dim", "(n_heads .)"),
        norm("sa_layer_norm", "dim"),
        linear("ffn.lin1", "hidden_dim", "dim"),
        linear("ffn.lin2", "dim", "hidden_dim"),
        norm("output_layer_norm", "dim"),
        linear("vocab_transform", "dim", "dim"),
        norm("vocab_layer_norm", "dim"),
        linear("vocab_projector", "vocab_size", "dim"),
        linear("pre_classifier", "dim", "dim"),
        linear("classifier", "_", "dim"),
        linear("qa_outputs", "_", "dim"),
    ),
    {"transformer.layer": "n_layers"},
    (Heads("dim", "n_heads"),),
)

_GPT2 = Family(
    merged(
        {
            "wte.weight": "vocab_size n_embd",
            "wpe.weight": "n_positions n_embd",
            "lm_head.weight": "vocab_size n_embd",
            "score.weight": "_ n_embd",
            # matrices lie the other way round than in a linear layer
            "attn.c_attn.weight": "n_embd (3 n_head .)",
            "attn.c_attn.bias": "(3 n_head .)",
            "attn.c_proj.weight": "(n_head .) n_embd",
            "attn.c_proj.bias": "n_embd",
            "mlp.c_fc.weight": "n_embd n_inner",
            "mlp.c_fc.bias": "n_inner",
            "mlp.c_proj.weight": "n_inner n_embd",
            "mlp.c_proj.bias": "n_embd",
        },
        norm("ln_1", "n_embd"),
        norm("ln_2", "n_embd"),
        norm("ln_f", "n_embd"),
    ),
    {"h": "n_layer"},
    (Heads("n_embd", "n_head"),),
)

_T5_HEADS = "(num_heads .)"
_T5 = Family(
    merged(
        {f"{name}.weight": "vocab_size d_model" for name in ("shared", "embed_tokens", "lm_head")},
        {
            f"{name}Attention.{part}.weight": f"{_T5_HEADS} d_model"
            for name in ("Self", "EncDec")
            for part in "qkv"
        },
        {f"{name}Attention.o.weight": f"d_model {_T5_HEADS}" for name in ("Self", "EncDec")},
        {"relative_attention_bias.weight": "_ num_heads"},
        {f"DenseReluDense.{part}.weight": "d_ff d_model" for part in ("wi", "wi_0", "wi_1")},
        {"DenseReluDense.wo.weight": "d_model d_ff"},
        {"layer_norm.weight": "d_model", "final_layer_norm.weight": "d_model"},
    ),
    {"encoder.block": "num_layers", "decoder.block": "num_decoder_layers"},
    (Heads("d_model", "num_heads", "d_kv"),),
)

_VIT = Family(
    merged(
        {
            "embeddings.cls_token": f"_ _ {_WIDE}",
            "embeddings.mask_token": f"_ _ {_WIDE}",
            "embeddings.position_embeddings": f"_ _ {_WIDE}",
            "patch_embeddings.projection.weight": f"{_WIDE} num_channels _ _",
            "patch_embeddings.projection.bias": _WIDE,
        },
        linear("attention.attention.query", _Q, _WIDE),
        linear("attention.attention.key", _Q, _WIDE),
        linear("attention.attention.value", _Q, _WIDE),
        linear("attention.output.dense", _WIDE, _Q),
        linear("intermediate.dense", _TALL, _WIDE),
        linear("layer.*.output.dense", _WIDE, _TALL),
        norm("layernorm_before", _WIDE),
        norm("layernorm_after", _WIDE),
        norm("layernorm", _WIDE),
        linear("pooler.dense", "_", _WIDE),
        linear("classifier", "_", _WIDE),
    ),
    {"encoder.layer": _DEEP},
    (Heads(_WIDE, "num_attention_heads"),),
)


def _clip_stack(model: str, config: str) -> dict[str, str]:
    wide, tall, heads = (
        f"{config}.{_WIDE}", f"{config}.{_TALL}", f"({config}.num_attention_heads .)",
    )  # fmt: skip
    layer = f"{model}.encoder.layers.*"
    return merged(
        linear(f"{layer}.self_attn.q_proj", heads, wide),
        linear(f"{layer}.self_attn.k_proj", heads, wide),
        linear(f"{layer}.self_attn.v_proj", heads, wide),
        linear(f"{layer}.self_attn.out_proj", wide, heads),
        linear(f"{layer}.mlp.fc1", tall, wide),
        linear(f"{layer}.mlp.fc2", wide, tall),
        norm(f"{layer}.layer_norm1", wide),
        norm(f"{layer}.layer_norm2", wide),
    )


_TEXT, _VISION = f"text_config.{_WIDE}", f"vision_config.{_WIDE}"
_CLIP = Family(
    merged(
        _clip_stack("text_model", "text_config"),
        _clip_stack("vision_model", "vision_config"),
        {
            "text_model.embeddings.token_embedding.weight": f"text_config.vocab_size {_TEXT}",
            "text_model.embeddings.position_embedding.weight": (
                f"text_config.max_position_embeddings {_TEXT}"
            ),
            "vision_model.embeddings.class_embedding": _VISION,
            "vision_model.embeddings.patch_embedding.weight": f"{_VISION} _ _ _",
            "vision_model.embeddings.position_embedding.weight": f"_ {_VISION}",
            "text_projection.weight": f"projection_dim {_TEXT}",
            "visual_projection.weight": f"projection_dim {_VISION}",
        },
        norm("text_model.final_layer_norm", _TEXT),
        norm("vision_model.pre_layrnorm", _VISION),
        norm("vision_model.post_layernorm", _VISION),
    ),
    {
        "text_model.encoder.layers": f"text_config.{_DEEP}",
        "vision_model.encoder.layers": f"vision_config.{_DEEP}",
    },
    (
        Heads(_TEXT, "text_config.num_attention_heads"),
        Heads(_VISION, "vision_config.num_attention_heads"),
    ),
)


def _whisper_stack(model: str, attentions: tuple[str, ...]) -> dict[str, str]:
    heads, tall = f"({model}_attention_heads .)", f"{model}_ffn_dim"
    layer = f"{model}.layers.*"
    rows = [
        row
        for name in attentions
        for row in (
            linear(f"{layer}.{name}.q_proj", heads, "d_model"),
            linear(f"{layer}.{name}.k_proj", heads, "d_model"),
            linear(f"{layer}.{name}.v_proj", heads, "d_model"),
            linear(f"{layer}.{name}.out_proj", "d_model", heads),
            norm(f"{layer}.{name}_layer_norm", "d_model"),
        )
    ]
    return merged(
        *rows,
        linear(f"{layer}.fc1", tall, "d_model"),
        linear(f"{layer}.fc2", "d_model", tall),
        norm(f"{layer}.final_layer_norm", "d_model"),
        norm(f"{model}.layer_norm", "d_model"),
    )


_WHISPER = Family(
    merged(
        _whisper_stack("encoder", ("self_attn",)),
        _whisper_stack("decoder", ("self_attn", "encoder_attn")),
        {
            "encoder.conv1.weight": "d_model num_mel_bins _",
            "encoder.conv1.bias": "d_model",
            "encoder.conv2.weight": "d_model d_model _",
            "encoder.conv2.bias": "d_model",
            "encoder.embed_positions.weight": "max_source_positions d_model",
            "decoder.embed_positions.weight": "max_target_positions d_model",
            "decoder.embed_tokens.weight": "vocab_size d_model",
            "proj_out.weight": "vocab_size d_model",
        },
    ),
    {"encoder.layers": "encoder_layers", "decoder.layers": "decoder_layers"},
    (Heads("d_model", "encoder_attention_heads"), Heads("d_model", "decoder_attention_heads")),
)

FAMILIES: Mapping[str, Family] = {
    "bert": _BERT,
    "clip": _CLIP,
    "distilbert": _DISTILBERT,
    "gemma": _LLAMA,
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "roberta": _BERT,
    "t5": _T5,
    "vit": _VIT,
    "whisper": _WHISPER,
}
