"""Uniform plans of captured models load into the library's class of the smaller config (E3)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="captures PyTorch models")

from benchmarks.fixtures import vision_ops  # noqa: E402  # before transformers

transformers = pytest.importorskip("transformers", reason="needs the library's classes")
vision_ops.declare()

import regraft  # noqa: E402
from regraft.ir.evaluate import evaluate  # noqa: E402
from regraft.ir.module import Module  # noqa: E402
from regraft.passes.analysis.coupling import Coupling  # noqa: E402
from regraft.passes.cleanup import Canonicalize  # noqa: E402
from regraft.passes.fusion import Fuse  # noqa: E402
from regraft.passes.protocol import Context  # noqa: E402
from regraft.passes.pruning.allocate import choose  # noqa: E402
from regraft.passes.pruning.checkpoint import kept_of_checkpoint, slice_checkpoint  # noqa: E402
from regraft.passes.pruning.criteria import score  # noqa: E402
from regraft.passes.pruning.plan import Plan, choice_of, make_plan  # noqa: E402
from regraft.passes.pruning.slicing import slice_module  # noqa: E402

HIDDEN, HEAD, INNER = 40, 16, 144
"""Sizes that no two kinds of groups share, each cut by its own rule: width per key head, of a head,
of the feed-forward part."""


@dataclass(frozen=True)
class Family:
    """A model class with a config of given sizes.

    Args:
        model: The class.
        config: Makes a config from (key) heads and the inner width of the feed-forward part.
        image: Whether it takes images.
        heads: Number of (key) heads before and after.
        grouped: Whether query heads share key heads.
    """

    model: str
    config: Callable[[int, int], Any]
    image: bool = False
    heads: tuple[int, int] = (5, 3)
    grouped: bool = False


def _encoder(name: str, **more: Any) -> Callable[[int, int], Any]:
    def config(heads: int, inner: int) -> Any:
        return getattr(transformers, name)(
            hidden_size=heads * HEAD, num_attention_heads=heads, intermediate_size=inner,
            num_hidden_layers=2, **more,
        )  # fmt: skip

    return config


def _decoder(name: str, width: int | None = None, **more: Any) -> Callable[[int, int], Any]:
    def config(kv_heads: int, inner: int) -> Any:
        return getattr(transformers, name)(
            hidden_size=width or HIDDEN * kv_heads, num_attention_heads=2 * kv_heads,
            num_key_value_heads=kv_heads,
            head_dim=HEAD, intermediate_size=inner, num_hidden_layers=2, vocab_size=100,
            max_position_embeddings=32, use_cache=False, **more,
        )  # fmt: skip

    return config


TEXT = {"vocab_size": 100, "max_position_embeddings": 32}
IMAGE = {"image_size": 32, "patch_size": 8}
FAMILIES: Mapping[str, Family] = {
    "bert": Family("BertForSequenceClassification", _encoder("BertConfig", **TEXT)),
    "roberta": Family("RobertaForSequenceClassification", _encoder("RobertaConfig", **TEXT)),
    "vit": Family("ViTForImageClassification", _encoder("ViTConfig", **IMAGE), image=True),
    "deit": Family("DeiTForImageClassification", _encoder("DeiTConfig", **IMAGE), image=True),
    "llama": Family("LlamaForCausalLM", _decoder("LlamaConfig"), grouped=True),
    "mistral": Family("MistralForCausalLM", _decoder("MistralConfig"), grouped=True),
    "qwen3": Family("Qwen3ForCausalLM", _decoder("Qwen3Config"), grouped=True),
    # its embeddings are multiplied by the root of the width, a number that stays: so does the width
    "gemma2": Family("Gemma2ForCausalLM", _decoder("Gemma2Config", 240), grouped=True),
    "gpt2": Family(
        "GPT2LMHeadModel",
        lambda heads, inner: transformers.GPT2Config(
            n_embd=heads * HEAD, n_head=heads, n_inner=inner, n_layer=2, vocab_size=100,
            n_positions=32, use_cache=False, bos_token_id=0, eos_token_id=0,
        ),
    ),
}  # fmt: skip


def _model(family: Family, config: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    model = getattr(transformers, family.model)(config).eval()
    with torch.no_grad():  # biases and gains start out as 0 and 1, which would hide what is cut
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def _input(family: Family) -> Any:
    generator = torch.Generator().manual_seed(0)
    if family.image:
        return torch.rand(2, 3, 32, 32, generator=generator)
    return torch.randint(3, 100, (2, 8), generator=generator)


def _pruned(family: Family, module: Module) -> dict[str, Any]:
    """Cuts groups by their size, in place; returns the plan."""
    before, after = family.heads
    new = {before: after, INNER: INNER // 2}
    width = HIDDEN if family.grouped else HEAD
    new[before * width] = after * width
    coupling = Coupling(module)
    sizes = np.array([new.get(group.size, group.size) for group in coupling.groups])
    scores = score(coupling, "l2", "mean", "mean", 0)
    choice = choose(coupling, sizes, scores)
    plan = make_plan(coupling, choice).to_json()
    slice_module(coupling, choice)
    return plan


CASES = [(name, True) for name in FAMILIES]
# until they are recognized, the means of RMS norms pin the residual width
CASES += [(name, False) for name, family in FAMILIES.items() if not family.grouped]


@pytest.mark.parametrize(("name", "fused"), CASES)
def test_a_uniform_plan_loads_into_the_smaller_class(name: str, fused: bool) -> None:
    family = FAMILIES[name]
    model = _model(family, family.config(family.heads[0], INNER), 0)
    x = _input(family)
    module = regraft.capture(model, (x,))
    if fused:
        for item in (Canonicalize(), Fuse(), Canonicalize()):
            item.run(module, Context())
    dense = module.clone()
    plan = _pruned(family, module)
    kept = kept_of_checkpoint(dense.weights, module.weights)

    small = getattr(transformers, family.model)(family.config(family.heads[1], INNER // 2)).eval()
    for seed in (0, 1):  # the checkpoint that was captured, and another of the architecture
        source = _model(family, family.config(family.heads[0], INNER), seed)
        state = {key: tensor.numpy() for key, tensor in source.state_dict().items()}
        cut = slice_checkpoint(kept, state)
        small.load_state_dict({k: torch.from_numpy(a.copy()) for k, a in cut.items()}, strict=True)
        other = regraft.capture(source, (x,))
        if fused:
            for item in (Canonicalize(), Fuse(), Canonicalize()):
                item.run(other, Context())
        again = Coupling(other)
        slice_module(again, choice_of(Plan.from_json(plan), again))
        feeds = {str(other.graph.inputs[0].name): x.numpy()}
        ours = evaluate(other, feeds)[other.graph.output_names[0]]
        with torch.no_grad():
            theirs = small(x)[0].numpy()
            whole = source(x)[0].numpy()
        scale = np.abs(theirs).max()
        # f32 sums in other orders, some hundred terms deep
        assert np.abs(ours - theirs).max() <= 2e-5 * scale
        assert np.abs(whole - theirs).max() > 1e-3 * scale

        original = {key: array.copy() for key, array in state.items()}
        for key, item in kept.items():
            if key in original:
                item.put(cut[key] + 1, original[key])
                assert np.array_equal(item.take(original[key]), cut[key] + 1)
                changed = int((original[key] != state[key]).sum())
                assert changed == cut[key].size
