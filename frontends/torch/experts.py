"""Mixtures of experts whose loop over the chosen experts cannot be exported.

The loop runs over the experts that some token chose, which only the data knows. Two replacements
give the same result for every choice: stacked experts compute every token at once and weigh by
what was chosen (zero elsewhere); a loop over `nonzero()` of one flag per expert becomes a loop
over all experts, of which those that no token chose add nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_COUNTS = (
    "total_experts",
    "num_experts",
    "num_routed_experts",
    "num_local_experts",
    "n_routed_experts",
)

_READS = ("__getitem__", "item")


@contextlib.contextmanager
def static_experts(module: torch.nn.Module) -> Iterator[None]:
    """Lets every mixture of experts in a module compute without looking at the data."""
    stacked = [part for part in module.modules() if _is_stacked(part)]
    sorted_ = [part for part in module.modules() if _is_sorted(part)]
    layers = [part for part in module.modules() if _num_experts(part) is not None]
    kept = list(dict.fromkeys(part for layer in layers for part in layer.modules()))
    for part in stacked:
        part.forward = partial(_compute_all, part)
    for part in sorted_:
        part.forward = partial(_compute_all_unsorted, part)
    for part in kept:
        part.to = partial(_to, part)
    try:
        with _StaticLoops() if layers else contextlib.nullcontext():
            yield
    finally:
        for part in (*stacked, *sorted_):
            del part.forward
        for part in kept:
            del part.to


def _to(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
    """Converts a module, where there is anything to convert: an export cannot change parameters.

    Routers convert themselves to the type that they have already.
    """
    _, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
    if all(tensor.dtype is dtype for tensor in module.parameters() if tensor.is_floating_point()):
        return module
    return type(module).to(module, *args, **kwargs)


def _num_experts(module: torch.nn.Module) -> int | None:
    for name in _COUNTS:
        found = getattr(module, name, None)
        if isinstance(found, int):
            return found
    return None


# -- stacked experts ----------------------------------------------------------------------------


def _is_stacked(module: torch.nn.Module) -> bool:
    """Returns whether a module holds stacked experts and computes the chosen ones of them.

    These are the attributes that `transformers` gives such a class so that its experts can be
    computed by another function.
    """
    if not hasattr(module, "_apply_gate") or not hasattr(module, "is_transposed"):
        return False
    first = module.gate_up_proj if getattr(module, "has_gate", True) else module.up_proj
    return all(isinstance(w, torch.Tensor) and w.dim() == 3 for w in (first, module.down_proj))


def _project(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, is_transposed: bool
) -> torch.Tensor:
    """Returns `[E, T, out]` of `x` `[E or 1, T, in]` for every expert."""
    out = torch.matmul(x, weight if is_transposed else weight.transpose(1, 2))
    return out if bias is None else out + bias.unsqueeze(1)


def _compute_all(
    experts: Any,
    hidden_states: torch.Tensor,
    top_k_index: Any = None,
    top_k_weights: Any = None,
    **renamed: Any,
) -> torch.Tensor:
    """Every expert computes every token; those that a token did not choose weigh zero.

    Args:
        experts: The module.
        hidden_states: `[T, D]`.
        top_k_index: `i64[T, K]`, the chosen experts; beyond the last expert: none.
        top_k_weights: `[T, K]`, what they weigh.
        renamed: The last two under the names that a class has for them.
    """
    if renamed:
        named = list(renamed.values())
        top_k_weights = named.pop() if top_k_weights is None else top_k_weights
        top_k_index = named.pop() if top_k_index is None else top_k_index
    first = experts.gate_up_proj if experts.has_gate else experts.up_proj
    prefix = "gate_up" if experts.has_gate else "up"
    up_bias = getattr(experts, f"{prefix}_proj_bias") if experts.has_bias else None
    down_bias = experts.down_proj_bias if experts.has_bias else None
    weights = _dense_weights(top_k_index, top_k_weights, first.shape[0])
    hidden = _project(
        hidden_states.unsqueeze(0), first, up_bias, is_transposed=experts.is_transposed
    )
    hidden = experts._apply_gate(hidden) if experts.has_gate else experts.act_fn(hidden)
    each = _project(hidden, experts.down_proj, down_bias, is_transposed=experts.is_transposed)
    if getattr(experts, "has_post_expert_norm", False):
        each = experts.post_expert_norm(each)
    total = (each * weights.transpose(0, 1).unsqueeze(-1)).sum(0)
    return total.to(hidden_states.dtype)


# -- experts whose tokens are sorted ------------------------------------------------------------


def _is_sorted(module: torch.nn.Module) -> bool:
    """Returns whether a module sorts tokens by expert, for two layers of stacked weights (JetMoe).

    How many tokens an expert has is a number of Python there, which no export knows.
    """
    first, last = (getattr(module, f"{name}_linear", None) for name in ("input", "output"))
    router = getattr(module, "router", None)
    stacks = [getattr(each, "weight", None) for each in (first, last)]
    return (
        all(isinstance(stack, torch.Tensor) and stack.dim() == 3 for stack in stacks)
        and isinstance(getattr(router, "layer", None), torch.nn.Linear)
        and isinstance(getattr(router, "top_k", None), int)
        and callable(getattr(module, "activation", None))
        and isinstance(getattr(module, "bias", None), torch.Tensor)
    )


def _compute_all_unsorted(experts: Any, layer_input: torch.Tensor) -> torch.Tensor:
    """Every expert computes every token; those that a token did not choose weigh zero.

    Args:
        experts: The module.
        layer_input: `[*b, D]`.
    """
    tokens = layer_input.reshape(-1, layer_input.shape[-1])
    logits = experts.router.layer(tokens).float()
    scores, chosen = logits.topk(experts.router.top_k, dim=1)
    weights = _dense_weights(chosen, scores.softmax(1).type_as(tokens), logits.shape[1])
    hidden = _project(tokens.unsqueeze(0), experts.input_linear.weight, None, is_transposed=False)
    gate, up = hidden.chunk(2, dim=-1)
    hidden = experts.activation(gate) * up
    each = _project(hidden, experts.output_linear.weight, None, is_transposed=False)
    total = (each * weights.transpose(0, 1).unsqueeze(-1)).sum(0)
    return total.reshape(layer_input.shape) + experts.bias


def _dense_weights(
    top_k_index: torch.Tensor, top_k_weights: torch.Tensor, num: int
) -> torch.Tensor:
    """Returns `[T, E]`, what every expert weighs for every token."""
    numbers = torch.arange(num, device=top_k_index.device)
    chosen = (top_k_index.unsqueeze(-1) == numbers).to(top_k_weights.dtype)  # [T, K, E]
    return (chosen * top_k_weights.unsqueeze(-1)).sum(1)


# -- loops over the chosen experts --------------------------------------------------------------


class _StaticLoops(TorchFunctionMode):
    """Makes `for expert in flags.nonzero()` a loop over all experts.

    Only where the flags are as many as the experts of a module that runs (or one more: some
    models have a class for masked tokens, which no token chooses in evaluation mode).
    """

    def __init__(self) -> None:
        super().__init__()
        self._running: list[int] = []
        self._found: dict[int, tuple[torch.Tensor, int]] = {}
        self._numbers: dict[int, tuple[torch.Tensor, int]] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> Any:
        before = torch.nn.modules.module.register_module_forward_pre_hook(self._enter_module)
        after = torch.nn.modules.module.register_module_forward_hook(self._leave_module)
        self._hooks = [before, after]
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*error)

    def _enter_module(self, module: torch.nn.Module, args: Any) -> None:
        count = _num_experts(module)
        if count is not None:
            self._running.append(count)

    def _leave_module(self, module: torch.nn.Module, args: Any, result: Any) -> None:
        if _num_experts(module) is not None:
            self._running.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name == "unbind" and id(args[0]) in self._found:
            count = self._found[id(args[0])][1]
            rows = tuple(torch.tensor([expert]) for expert in range(count))
            self._numbers.update((id(row), (row, i)) for i, row in enumerate(rows))
            return rows
        if name in _READS and id(args[0]) in self._numbers:
            return self._numbers[id(args[0])][1]
        result = func(*args, **(kwargs or {}))
        if name == "where" and self._running and len(args) == 1:
            # an expert without tokens adds nothing: whether it is left out does not matter
            for places in result:
                if isinstance(places.shape[0], torch.SymInt):
                    torch._check(places.shape[0] != 0)
        if name == "nonzero" and self._running and isinstance(result, torch.Tensor):
            shape, count = args[0].shape, self._running[-1]
            if len(shape) == 1 and type(shape[0]) is int and 0 <= shape[0] - count <= 1:
                self._found[id(result)] = (result, count)
        return result
