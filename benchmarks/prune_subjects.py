"""What the coverage of pruning is measured on: a small model of every family, with random weights.

One architecture per family of `timm`, the lightest, and forty families of `transformers`. Building
one needs PyTorch and the library; the names do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.torch_timm_names import ARCHITECTURES

HF: Mapping[str, str] = {
    # decoders: one key head per query head, groups of query heads, one key head for all
    "llama": "GQA", "mistral": "GQA, window", "qwen2": "GQA", "qwen3": "GQA, norms of heads",
    "gemma2": "GQA, caps", "gemma3_text": "GQA, windows", "phi3": "fused QKV", "phi": "parallel",
    "olmo2": "norms after", "starcoder2": "GQA", "stablelm": "partly rotated", "glm": "GQA",
    "cohere": "parallel", "granite": "GQA", "gpt_bigcode": "MQA", "falcon": "MQA, fused QKV",
    "gpt2": "fused QKV", "gpt_neox": "fused QKV", "opt": "learned positions",
    "bloom": "ALiBi, fused QKV", "mpt": "ALiBi", "gptj": "interleaved",
    # encoders
    "bert": "absolute", "distilbert": "absolute", "electra": "projected embedding",
    "albert": "shared layers", "deberta-v2": "disentangled", "mpnet": "relative bias",
    "modernbert": "rotary, windows",
    # encoder-decoder
    "t5": "relative bias", "bart": "absolute", "whisper": "audio",
    # audio, vision, towers
    "wav2vec2": "audio", "hubert": "audio", "vit": "vision", "swin": "relative bias",
    "clip": "two towers",
    # mixtures of experts, state spaces
    "mixtral": "experts", "qwen3_moe": "experts", "mamba": "state space",
}  # fmt: skip
"""Families of `transformers`, and what each is here for."""

TIMM: Mapping[str, str] = {family: names[0] for family, names in ARCHITECTURES.items()}
"""The lightest architecture of every family of `timm`."""

NAMES: tuple[str, ...] = (*(f"timm/{family}" for family in TIMM), *(f"hf/{name}" for name in HF))


@dataclass(frozen=True, slots=True)
class Subject:
    """A model with an example of its inputs.

    Args:
        net: The model, in evaluation mode.
        args: Positional arguments of the example.
        kwargs: Keyword arguments of the example.
        fixed: Keyword arguments that are no tensors.
        dynamic: Dynamic axes, as `capture` takes them.
        sample: Inputs that the pruned model runs on, in the order of the arguments.
        sizes: Sizes of the dynamic axes of the sample.
    """

    net: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    dynamic: Any
    sample: tuple[Any, ...]
    sizes: Mapping[str, int] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def call(self, net: Any) -> Any:
        """Returns what a model of this interface gives for the sample."""
        if self.args:
            return net(*self.sample, **self.fixed)
        return net(**dict(zip(self.kwargs, self.sample, strict=True)), **self.fixed)


def subject(name: str) -> Subject:
    """Builds a model by name, `timm/FAMILY` or `hf/FAMILY`; needs PyTorch.

    Raises:
        KeyError: There is no such family.
    """
    from benchmarks.fixtures import vision_ops

    vision_ops.declare()  # where torchvision is installed without them, no model can be imported
    library, _, family = name.partition("/")
    makers: Mapping[str, Callable[[str], Subject]] = {"timm": _timm, "hf": _hf}
    return makers[library](family)


def _timm(family: str) -> Subject:
    import torch

    from benchmarks.torch_timm import runnable

    torch.manual_seed(0)
    net, side = runnable(TIMM[family])
    net.requires_grad_(requires_grad=False)
    example = torch.randn(2, 3, side, side)
    return Subject(net, (example,), {}, ({0: "batch"},), (example[:1],), {"batch": 1})


def _hf(family: str) -> Subject:
    from benchmarks.fixtures.capture_models import MODELS

    (model,) = (model for model in MODELS if model.name == family)
    tensors = model.sample({}, 0)
    sizes = {
        name: item.shape[axis] for item in model.inputs.values() for axis, name in item.axes.items()
    }
    return Subject(
        model.build(), (), tensors, model.dynamic, tuple(tensors.values()), sizes, model.fixed
    )
