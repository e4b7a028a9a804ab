"""Layers of experts of `transformers` and of users: with groups, einsums and grouped products."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")
pytest.importorskip("transformers", reason="needs transformers")

import regraft  # noqa: E402
from benchmarks.fixtures import vision_ops  # noqa: E402
from regraft.ir.evaluate import evaluate  # noqa: E402

vision_ops.declare()

from benchmarks.fixtures.expert_layers import LAYERS, WIDTH, ExpertLayer  # noqa: E402

_F64 = 1e-8
"""Relative, of f64 differences: constants of the source are f32."""


def _fused(source: Any, x: Any) -> dict[str, Any]:
    """Fuses a captured layer; returns the attributes of its one operator `moe`."""
    module = regraft.capture(
        source, () if isinstance(source, torch.export.ExportedProgram) else (x,)
    )
    sample = {str(module.graph.inputs[0].name): x.numpy()}
    want = evaluate(module, sample, oracle=True)
    regraft.apply(module, "canonicalize,fuse", check="off")
    (node,) = (node for node in module.graph if node.op.name == "moe")
    got = evaluate(module, sample, oracle=True)
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, rtol=0, atol=_F64 * np.abs(array).max())
    return dict(node.attrs)


def _layer(family: str) -> ExpertLayer:
    return next(layer for layer in LAYERS if layer.family == family)


def _tokens() -> Any:
    return torch.randn(2, 7, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("family", "best"), [("deepseek_v3", 2), ("axk1", 2), ("mistral4", 2), ("nemotron_h", 2)]
)
def test_groups_of_experts_are_named(family: str, best: int) -> None:
    attrs = _fused(_layer(family).build(), _tokens())
    assert attrs["select"] == "groups"
    assert (attrs["groups"], attrs["top_groups"], attrs["group_best"]) == (2, 1, best)


@pytest.mark.parametrize(
    ("family", "special"),
    [("inkling2", {"bounds": "soft", "limit": 25.0, "gate_limit": 4.0}),
     ("muse_spark", {"norm_epsilon": 1e-8}), ("longcat_flash", {"scoring": "given"})],
)  # fmt: skip
def test_experts_with_soft_bounds_norms_and_ones_that_do_nothing(
    family: str, special: dict[str, object]
) -> None:
    attrs = _fused(_layer(family).build(), _tokens())
    assert {name: attrs[name] for name in special} == special


def test_a_gate_bounded_behind_its_activation() -> None:
    free, bounded = (layer for layer in LAYERS if layer.family == "step3p7")
    assert _fused(free.build(), _tokens())["limit"] == 0
    attrs = _fused(bounded.build(), _tokens())
    assert (attrs["bounds"], attrs["limit"], attrs["gate_limit"]) == ("clip_after", 0.5, 0.5)


@pytest.mark.parametrize(
    ("family", "scoring"),
    [("mixtral", "topk_softmax"), ("gpt_oss", "topk_softmax"), ("olmoe", "softmax"),
     ("nemotron_h", "sigmoid")],
)  # fmt: skip
def test_exported_grouped_products_are_experts(family: str, scoring: str) -> None:
    net, x = _layer(family).build(), _tokens()
    for part in net.modules():
        if hasattr(part, "is_transposed"):
            part.config._experts_implementation = "grouped_mm"
    program = torch.export.export(net, (x,), strict=False)
    assert any("grouped_mm" in str(node.target) for node in program.graph.nodes)
    assert _fused(program, x)["scoring"] == scoring


class _Spelled(torch.nn.Module):
    """Experts of einsums: all for every token, or those that a token chose."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.router = torch.nn.Linear(16, 8, bias=False)
        self.up, self.gate = (torch.nn.Parameter(torch.randn(8, 16, 24) / 4) for _ in range(2))
        self.down = torch.nn.Parameter(torch.randn(8, 24, 16) / 4)

    def forward(self, x: Any) -> Any:
        scores = torch.softmax(self.router(x), -1)
        weights, chosen = scores.topk(2, -1)
        silu = torch.nn.functional.silu
        if self.form == "picked":
            rows, weights, chosen = x.flatten(0, 1), weights.flatten(0, 1), chosen.flatten(0, 1)
            gates = torch.einsum("td,tkdf->tkf", rows, self.gate[chosen])
            hidden = silu(gates) * torch.einsum("td,tkdf->tkf", rows, self.up[chosen])
            each = torch.einsum("tkf,tkfd->tkd", hidden, self.down[chosen])
            return torch.einsum("tkd,tk->td", each, weights).reshape(x.shape)
        dense = torch.zeros_like(scores).scatter(-1, chosen, weights)
        first, last = f"bsd,edf->{self.form}f", f"{self.form}f,efd->{self.form}d"
        hidden = silu(torch.einsum(first, x, self.gate)) * torch.einsum(first, x, self.up)
        each = torch.einsum(last, hidden, self.down)
        return torch.einsum(f"{self.form}d,bse->bsd", each, dense)


@pytest.mark.parametrize("form", ["bse", "ebs", "bes", "picked"])
def test_experts_of_einsums(form: str) -> None:
    torch.manual_seed(0)
    attrs = _fused(_Spelled(form).eval(), torch.randn(2, 7, 16))
    assert (attrs["scoring"], attrs["top_k"]) == ("softmax", 2)
