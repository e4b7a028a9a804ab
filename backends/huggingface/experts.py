"""Folders of mixtures of experts: the config and the tensors that a dense folder becomes.

The layers of experts are read off the operators `moe`; everything else is written as a folder of
the source's family is. Every value of the source's config is written, its defaults included: the
families' defaults differ (base of rotary embedding, epsilon of norms, heads of keys).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.constants import constant_of, weight
from regraft.ir.derive import DerivedWeight, derive
from regraft.ir.errors import UnsupportedError
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import cast, linalg, moe, reshaping
from regraft.ir.ops.moe_hidden import is_bounded
from regraft.ir.stacked import StackedWeight
from regraft.ir.steps import Transpose
from regraft.ir.weights import ArrayWeight, Weight

Array = np.ndarray[Any, Any]

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_MOVES = frozenset({reshaping.reshape, reshaping.squeeze, reshaping.unsqueeze, cast.cast})


@dataclass(frozen=True, slots=True)
class ExpertFamily:
    """A family of `transformers` with layers of experts.

    Args:
        kind: Its `model_type`.
        classes: Prefix of the names of its classes.
        count: Config key of the number of experts.
        width: Config key of the hidden channels of an expert.
        renormalizes: Config key that says whether weights are renormalized; None: they always are.
        skips: Config key of the layers without experts; None: every layer has them.
        shared: Config key of the hidden channels of an expert that computes every token, or None.
        fixed: Further values.
    """

    kind: str
    classes: str
    count: str
    width: str
    renormalizes: str | None
    skips: str | None
    shared: str | None
    fixed: Mapping[str, Any]


_MIXTRAL = ExpertFamily(
    "mixtral", "Mixtral", "num_local_experts", "intermediate_size", None, None, None, {}
)
_QWEN2 = ExpertFamily(
    "qwen2_moe", "Qwen2Moe", "num_experts", "moe_intermediate_size", "norm_topk_prob",
    "mlp_only_layers", "shared_expert_intermediate_size", {"decoder_sparse_step": 1},
)  # fmt: skip
_QWEN3 = ExpertFamily(
    "qwen3_moe", "Qwen3Moe", "num_experts", "moe_intermediate_size", "norm_topk_prob",
    "mlp_only_layers", None, {"decoder_sparse_step": 1},
)  # fmt: skip
_OLMOE = ExpertFamily(
    "olmoe", "Olmoe", "num_experts", "intermediate_size", "norm_topk_prob", None, None, {}
)
_FLEX_OLMO = ExpertFamily(
    "flex_olmo", "FlexOlmo", "num_experts", "intermediate_size", "norm_topk_prob", None, None, {}
)

FAMILIES: Mapping[str, tuple[str, ExpertFamily]] = {
    "llama": ("Llama", _MIXTRAL),
    "mistral": ("Mistral", _MIXTRAL),
    "mixtral": ("Mixtral", _MIXTRAL),
    "olmo2": ("Olmo2", _FLEX_OLMO),
    "olmoe": ("Olmoe", _OLMOE),
    "qwen2": ("Qwen2", _QWEN2),
    "qwen2_moe": ("Qwen2Moe", _QWEN2),
    "qwen3": ("Qwen3", _QWEN3),
    "qwen3_moe": ("Qwen3Moe", _QWEN3),
}
"""By the source's `model_type`: the prefix of its classes, and what it becomes."""

_SHARED_WIDTH = 8
"""Of a shared expert of zeros, where the family has one and the source has not."""


@dataclass(frozen=True, slots=True, eq=False)
class ExpertLayer:
    """One layer of experts.

    Args:
        layer: Its number.
        prefix: What the names of its tensors begin with, `model.layers.3.mlp`.
        node: The operator.
        up: f[E, F, D].
        gate: f[E, F, D].
        down: f[E, D, F].
        router: f[D, E].
        names: Of these weights in the module.
    """

    layer: int
    prefix: str
    node: Node
    up: Weight
    gate: Weight
    down: Weight
    router: Weight
    names: tuple[str, ...]


def expert_layers(module: Module, kind: str) -> list[ExpertLayer]:
    """Returns the layers of experts of a module, in order.

    Args:
        module: The module.
        kind: The `model_type` of its source.

    Raises:
        UnsupportedError: For layers that no family of `transformers` holds, naming why.
    """
    nodes = [node for node in module.graph if node.op is moe.moe]
    if not nodes:
        return []
    if kind not in FAMILIES:
        raise UnsupportedError(
            f"the module has layers of experts, and there is no family of `{kind}` with experts; "
            f"there are those of {', '.join(FAMILIES)}",
            hint="write it with `--target torch` or `--target ort-cpu`",
        )
    found = [_layer(module, node, FAMILIES[kind][1]) for node in nodes]
    return sorted(found, key=lambda each: each.layer)


def _layer(module: Module, node: Node, family: ExpertFamily) -> ExpertLayer:
    name = str(node.output.name)
    where = str(node.inputs[2].name) if node.inputs[2] is not None else name
    found = _LAYER.search(where)
    attrs = node.attrs
    if found is None:
        raise _refusal(where, "its name does not say which layer it is")
    reason = None
    if attrs["scoring"] not in ("softmax", "topk_softmax"):
        reason = f"its scores are `{attrs['scoring']}`"
    elif attrs["routed_scale"] != 1 or attrs["weigh_input"]:
        reason = "its weights are scaled, or multiply what experts read"
    elif attrs["select"] != "top_k" or attrs["capacity"] or attrs["widths"]:
        reason = "its experts have a capacity, several widths, or another selection than top-k"
    elif is_bounded(attrs) or attrs["norm_epsilon"]:
        reason = "its hidden channels have a limit or an offset, or a norm is behind its experts"
    elif any(value is not None for value in node.inputs[5:]):
        reason = "its experts or its router have biases"
    elif len(node.inputs) < 5 or node.inputs[4] is None:
        reason = "its experts have no gate"
    elif not _renormalizes(attrs) and family.renormalizes is None:
        reason = f"a `{family.kind}` divides the weights of the chosen experts by their sum"
    if reason is not None:
        raise _refusal(where, reason)
    names = [_name(module, value, where) for value in node.inputs[2:5]]
    router = _router(node.inputs[1], where)
    names.append(_name(module, router, where))
    up, down, gate, router_weight = (module.weights[each] for each in names)
    if router_weight.shape != (up.shape[2], up.shape[0]):
        raise _refusal(where, "its router is not one matrix")
    return ExpertLayer(
        int(found[1]), f"model.layers.{found[1]}.mlp", node, up, gate, down, router_weight,
        tuple(names),
    )  # fmt: skip


def _renormalizes(attrs: Mapping[str, Any]) -> bool:
    return attrs["scoring"] == "topk_softmax" or bool(attrs["renormalize"])


def _router(value: Value | None, where: str) -> Value:
    while value is not None and value.producer is not None and value.producer.op in _MOVES:
        value = value.producer.inputs[0]
    node = None if value is None else value.producer
    if node is None or node.op is not linalg.matmul or node.inputs[1] is None:
        raise _refusal(where, "its router is not one matrix")
    return node.inputs[1]


def _name(module: Module, value: Value | None, where: str) -> str:
    node = None if value is None else value.producer
    if value is None or node is None or node.op is not weight:
        content = None if value is None else constant_of(value, 1 << 62)
        if content is None:
            raise _refusal(where, "its weights are not constant")
        raise _refusal(where, "its weights follow from others: run `canonicalize` before")
    name: str = node.attrs["name"]
    return module.weights.resolve(name)


def _refusal(where: str, reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"the experts of `{where}` are none of a family of `transformers`: {reason}",
        hint="write the module with `--target torch` or `--target ort-cpu`, which take all",
    )


def is_expert_tensor(name: str, layers: Mapping[int, ExpertLayer]) -> bool:
    """Returns whether a tensor of the source is written anew, or is no more.

    Shared experts and their gate stay.
    """
    found = _LAYER.search(name)
    if found is None or int(found[1]) not in layers:
        return False
    rest = name[found.end() :]
    return rest.startswith("mlp.") and not rest.startswith("mlp.shared_expert")


def expert_config(
    config: Mapping[str, Any], layers: list[ExpertLayer], num_layers: int
) -> dict[str, Any]:
    """Returns the config of the folder.

    Args:
        config: All values of the source's config, defaults included.
        layers: The layers of experts.
        num_layers: How many layers there are.

    Raises:
        UnsupportedError: When layers differ where the config has one value.
    """
    kind = str(config["model_type"])
    prefix, family = FAMILIES[kind]
    facts = {
        (each.up.shape[0], each.up.shape[1], each.node.attrs["top_k"],
         _renormalizes(each.node.attrs))
        for each in layers
    }  # fmt: skip
    if len(facts) > 1:
        raise UnsupportedError(
            "layers differ in experts, hidden channels, or how they choose, and the config has one "
            f"value: {sorted(facts)}"
        )
    ((count, width, top_k, renormalizes),) = facts
    dense = sorted(set(range(num_layers)) - {each.layer for each in layers})
    if dense and family.skips is None:
        raise UnsupportedError(
            f"the layers {dense} have no experts, and every layer of a `{family.kind}` has",
            hint="upcycle every layer: leave `every`, `only` and `keep` out",
        )
    made = {key: value for key, value in config.items() if key != "transformers_version"}
    made |= {
        **family.fixed, "model_type": family.kind, family.count: count, family.width: width,
        "num_experts_per_tok": top_k,
        "architectures": [
            str(name).replace(prefix, family.classes, 1) for name in config["architectures"]
        ],
    }  # fmt: skip
    made.setdefault("sliding_window", None)
    if family.renormalizes is not None:
        made[family.renormalizes] = renormalizes
    if family.skips is not None:
        made[family.skips] = dense
    if family.shared is not None and kind != family.kind:
        made[family.shared] = _SHARED_WIDTH
    return made


def expert_tensors(
    layer: ExpertLayer, family: ExpertFamily, *, adds_shared: bool
) -> dict[str, Weight]:
    """Returns the tensors of one layer of experts by name; nothing is read yet.

    Args:
        layer: The layer.
        family: What is written.
        adds_shared: Whether a shared expert of zeros is added.
    """
    count, width, channels = layer.up.shape

    def both(expert: int) -> Array:
        return np.concatenate([_entry(layer.gate, expert), _entry(layer.up, expert)])

    at = layer.prefix
    tree = Transpose(derive(layer.names[-1], layer.router), (1, 0))
    tensors: dict[str, Weight] = {
        f"{at}.gate.weight": DerivedWeight(tree),
        f"{at}.experts.gate_up_proj": StackedWeight(
            layer.up.dtype, (count, 2 * width, channels), both
        ),
        f"{at}.experts.down_proj": layer.down,
    }
    if adds_shared:
        dtype = layer.up.dtype.numpy

        def zeros(*shape: int) -> Weight:
            return ArrayWeight(np.zeros(shape, dtype))

        tensors |= {
            f"{at}.shared_expert.gate_proj.weight": zeros(_SHARED_WIDTH, channels),
            f"{at}.shared_expert.up_proj.weight": zeros(_SHARED_WIDTH, channels),
            f"{at}.shared_expert.down_proj.weight": zeros(channels, _SHARED_WIDTH),
            f"{at}.shared_expert_gate.weight": zeros(1, channels),
        }
    return tensors


def _entry(stack: Weight, expert: int) -> Array:
    """Returns one matrix of a stack; of a large one no more is read."""
    match stack:
        case StackedWeight():
            return stack.entry(expert)
        case DerivedWeight():
            rest = tuple((0, size) for size in stack.shape[1:])
            row: Array = stack.read(((expert, expert + 1), *rest))[0]
            return row
        case _:
            matrix: Array = stack.numpy()[expert]
            return matrix
