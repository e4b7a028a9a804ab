"""Emitter of mixtures of experts."""

from __future__ import annotations

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
}


def _emit_moe(e: EmitContext) -> str:
    names = [operand.name for operand in ops.moe.operands]
    given = {name: text for name, text in zip(names, e.inputs, strict=False) if text != "None"}
    router, bias = given.pop("router"), given.pop("score_bias", None)
    renormalize, scale = e.attr("renormalize"), e.attr("routed_scale")
    route = call_text(
        e.helper(_ROUTES[e.attr("scoring")]), router, str(e.attr("top_k")), bias=bias,
        renormalize="True" if renormalize else None, scale=None if scale == 1 else repr(scale),
    )  # fmt: skip
    routed = e.temp(route, "routed")
    activation = e.helper(_ACTIVATIONS[e.attr("activation")])
    x, up, down = (given.pop(name) for name in ("x", "up", "down"))
    for name in ("limit", "up_offset"):
        if e.attr(name):
            given[name] = repr(e.attr(name))
    if e.attr("weigh_input"):
        given["weigh_input"] = "True"
    return call_text(
        e.helper(library.apply_experts), x, f"*{routed}", up, down, activation, **given
    )


EMITS = (Emit(ops.moe, _emit_moe),)
