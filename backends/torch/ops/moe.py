"""Emitter of mixtures of experts."""

from __future__ import annotations

from collections.abc import Mapping

from regraft.backends.torch.emitter import Emit, EmitContext
from regraft.backends.torch.library import experts as library
from regraft.backends.torch.ops.params import call_text
from regraft.ir.ops import moe as ops

_ROUTES = {
    "softmax": library.route_softmax,
    "topk_softmax": library.route_chosen,
    "sigmoid": library.route_sigmoid,
    "given": library.route_given,
}
_ACTIVATIONS = {
    "relu": library.expert_relu,
    "relu2": library.expert_relu2,
    "silu": library.expert_silu,
    "quick_gelu": library.expert_quick_gelu,
    "gelu": library.expert_gelu,
    "gelu_tanh": library.expert_gelu_tanh,
    "hard_swish": library.expert_hard_swish,
    "sigmoid": library.expert_sigmoid,
    "identity": library.expert_identity,
}


_OPENINGS = {"silu": library.expert_sigmoid, "quick_gelu": library.expert_quick_sigmoid}
"""What multiplies the gate of a swish: with soft bounds it reads the gate as it is."""


def _emit_moe(e: EmitContext) -> str:
    is_soft = e.attr("bounds") == "soft"
    activation = e.helper((_OPENINGS if is_soft else _ACTIVATIONS)[e.attr("activation")])
    return experts_text(e, e.helper(library.apply_experts), activation)


def experts_text(
    e: EmitContext, function: str, activation: str, matrices: Mapping[str, str] | None = None
) -> str:
    """Returns the call of a function with the operands of `apply_experts`, behind its routing.

    Args:
        e: The node.
        function: Expression of the function.
        activation: Expression of what it takes as the activation.
        matrices: Expressions of `up`, `down` and `gate`, where they are not the operands.
    """
    names = [operand.name for operand in ops.moe.operands]
    given = {name: text for name, text in zip(names, e.inputs, strict=False) if text != "None"}
    given |= matrices or {}
    routed = _routed(e, given)
    x, up, down = (given.pop(name) for name in ("x", "up", "down"))
    for name in ("limit", "up_offset", "gate_limit", "norm_epsilon"):
        if e.attr(name):
            given[name] = repr(e.attr(name))
    if e.attr("bounds") != "clip":
        given["bounds"] = repr(e.attr("bounds"))
    if e.attr("weigh_input"):
        given["weigh_input"] = "True"
    return call_text(function, x, *routed[:2], up, down, activation, **given, taken=routed[2])


def _routed(e: EmitContext, given: dict[str, str]) -> tuple[str, str, str | None]:
    """Returns experts, weights, and which of them are taken, None where all are."""
    router, bias = given.pop("router"), given.pop("score_bias", None)
    gain = given.pop("weight_gain", None)
    renormalize, scale = e.attr("renormalize"), e.attr("routed_scale")
    rest = {
        "bias": bias,
        "renormalize": "True" if renormalize else None,
        "scale": None if scale == 1 else repr(scale),
    }
    if gain is None and e.attr("select") == "top_k" and not e.attr("capacity"):
        route = e.helper(_ROUTES[e.attr("scoring")])
        routed = e.temp(call_text(route, router, str(e.attr("top_k")), **rest), "routed")
        return f"{routed}[0]", f"{routed}[1]", None
    settings = [repr(e.attr(name)) for name in ("scoring", "select", "threshold", "capacity")]
    if e.attr("select") == "groups":
        rest |= {name: str(e.attr(name)) for name in ("groups", "top_groups", "group_best")}
    text = call_text(
        e.helper(library.route_further), router, str(e.attr("top_k")), *settings, gain=gain, **rest
    )
    routed = e.temp(text, "routed")
    return f"{routed}[0]", f"{routed}[1]", f"{routed}[2]"


EMITS = (Emit(ops.moe, _emit_moe),)
