"""Experts as PyTorch code spells them: loops, stacks, gathered matrices, sorted tokens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="captures PyTorch modules")

import regraft  # noqa: E402
from regraft.ir.evaluate import evaluate  # noqa: E402

E, K, D, F = 4, 2, 8, 12
Tensor = torch.Tensor
_ATOL = 64 * float(np.finfo(np.float64).eps)
"""Sums of F products in f64, of numbers about 1."""


class _Experts(torch.nn.Module):
    num_experts = E

    def __init__(self, form: Callable[..., Tensor], route: Callable[..., object]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.form, self.route = form, route
        self.router = torch.nn.Linear(D, E)
        self.score_bias = torch.nn.Parameter(torch.randn(E, generator=generator))
        self.gate, self.up, self.down = (
            torch.nn.Parameter(torch.randn(*shape, generator=generator) / 3)
            for shape in ((E, F, D), (E, F, D), (E, D, F))
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, D)
        weights, chosen = self.route(self, self.router(tokens))
        return self.form(self, tokens, weights, chosen).reshape(x.shape)


def _expert(net: _Experts, x: Tensor, e: int) -> Tensor:
    hidden = torch.nn.functional.silu(x @ net.gate[e].T) * (x @ net.up[e].T)
    return hidden @ net.down[e].T


def _masked_loop(net: _Experts, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for e in range(E):
        out = out + _expert(net, x, e) * (weights * (chosen == e)).sum(-1, keepdim=True)
    return out


def _column_loop(net: _Experts, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    shares = torch.zeros(x.shape[0], E).scatter(1, chosen, weights)
    out = _expert(net, x, 0) * shares[:, 0:1]
    for e in range(1, E):
        out = out + _expert(net, x, e) * shares[:, e : e + 1]
    return out


def _picking_loop(net: _Experts, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    flags = torch.nn.functional.one_hot(chosen, E).permute(2, 1, 0)
    for e in range(E):
        slot, token = torch.where(flags[e])
        out.index_add_(0, token, _expert(net, x[token], e) * weights[token, slot, None])
    return out


def _in_place_loop(net: _Experts, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """As DeepSeek's code has it, with the experts left out that nobody chose."""
    out = torch.zeros_like(x)
    for e in range(E):
        token, slot = torch.where(chosen == e)
        if token.shape[0] == 0:
            continue
        out[token] += _expert(net, x[token], e) * weights[token, slot, None]
    return out


def _dense(net: _Experts, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    shares = torch.zeros(x.shape[0], E).scatter(1, chosen, weights)
    gate, up = (x @ each.transpose(1, 2) for each in (net.gate, net.up))
    each = (torch.nn.functional.silu(gate) * up) @ net.down.transpose(1, 2)
    return (each * shares.T.unsqueeze(-1)).sum(0)


def _gathered(net: _Experts, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    flat, rows = chosen.reshape(-1), x.repeat_interleave(K, 0).unsqueeze(-1)
    hidden = torch.nn.functional.silu(net.gate[flat] @ rows) * (net.up[flat] @ rows)
    each = (net.down[flat] @ hidden).squeeze(-1) * weights.reshape(-1, 1)
    return each.reshape(-1, K, D).sum(1)


def _softmax(net: _Experts, scores: Tensor) -> object:
    return scores.softmax(-1).topk(K, -1)


def _renormalized(net: _Experts, scores: Tensor) -> object:
    weights, chosen = scores.softmax(-1).topk(K, -1)
    return weights / weights.sum(-1, keepdim=True), chosen


def _sigmoid(net: _Experts, scores: Tensor) -> object:
    """The bias chooses, and does not weigh."""
    probabilities = torch.sigmoid(scores)
    chosen = (probabilities + net.score_bias).topk(K, -1)[1]
    weights = probabilities.gather(1, chosen)
    return 2.5 * weights / (weights.sum(-1, keepdim=True) + 1e-20), chosen


def _exotic(net: _Experts, scores: Tensor) -> object:
    weights, chosen = torch.nn.functional.softplus(scores).topk(K, -1)
    return weights.sqrt(), chosen


FORMS = (_masked_loop, _column_loop, _picking_loop, _in_place_loop, _dense, _gathered)
ROUTES = {
    _softmax: ("softmax", False, 1.0),
    _renormalized: ("topk_softmax", False, 1.0),
    _sigmoid: ("sigmoid", True, 2.5),
    _exotic: ("given", False, 1.0),
}


@pytest.mark.filterwarnings("ignore")  # deprecations inside of torch.export
@pytest.mark.parametrize(
    ("form", "route", "is_dynamic"),
    [(form, route, False) for route in (_sigmoid, _exotic) for form in FORMS[-2:]]
    + [(form, _softmax, False) for form in FORMS]
    + [(form, _renormalized, True) for form in FORMS],
)
def test_experts_of_every_form_and_routing_are_raised(
    form: Callable[..., Tensor], route: Callable[..., object], is_dynamic: bool
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 7, D)
    sizes = ({1: torch.export.Dim("T", max=64)},) if is_dynamic else None
    module = regraft.capture(_Experts(form, route).eval(), (x,), dynamic_shapes=sizes)
    sample = {str(module.graph.inputs[0].name): x.numpy()}
    before = evaluate(module, sample, oracle=True)
    regraft.apply(module, "canonicalize,fuse")
    (node,) = (node for node in module.graph if node.op.name == "moe")
    found = tuple(node.attrs[name] for name in ("scoring", "renormalize", "routed_scale"))
    assert found == ROUTES[route]
    assert (len(node.inputs) > 8 and node.inputs[8] is not None) == (route is _sigmoid)
    after = evaluate(module, sample, oracle=True)
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array, rtol=0, atol=_ATOL)


@pytest.mark.filterwarnings("ignore")  # deprecations inside of torch.export
def test_groups_of_experts_stay_as_they_choose() -> None:
    """DeepSeek-V3: only experts of the best group may be chosen."""

    def grouped(net: _Experts, scores: Tensor) -> object:
        best = scores.reshape(-1, 2, E // 2).amax(-1).argmax(-1, keepdim=True)
        of = torch.arange(E) // (E // 2)
        return torch.where(of == best, scores.sigmoid(), 0.0).topk(K, -1)

    module = regraft.capture(_Experts(_dense, grouped).eval(), (torch.randn(2, 7, D),))
    records = regraft.apply(module, "canonicalize,fuse")
    (node,) = (node for node in module.graph if node.op.name == "moe")
    assert node.attrs["scoring"] == "given"
    reasons = [skip.reason for record in records for skip in record.skipped]
    assert any("none of the operator's scorings" in reason for reason in reasons)
