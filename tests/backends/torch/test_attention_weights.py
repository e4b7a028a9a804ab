"""Named checks of published attention variants, on the trainable form."""

from __future__ import annotations

import numpy as np
import pytest

from tests.backends.torch.models import torch

from regraft.backends.torch.library import weighing  # isort: skip  # needs torch
from regraft.ir.ops.attention_weights import weights_of  # isort: skip


def _all(x: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(x, dtype=torch.bool)


def _weights(x: torch.Tensor, normalizer: str, *parameters: float) -> torch.Tensor:
    return weighing.normalized(x, _all(x), normalizer, parameters)


def test_stablemax_keeps_what_softmax_loses() -> None:
    """Prieto et al. 2025: softmax of large logits collapses to exact zeros."""
    x = torch.tensor([1000.0, 0, -5, 3]).reshape(1, 1, 1, 4)
    assert (_weights(x, "softmax") == 0).sum() == 3
    found = _weights(x, "stablemax").flatten().tolist()
    assert found[1:] == pytest.approx([9.9e-4, 1.7e-4, 4.0e-3], rel=0.03)


def test_stablemax_cross_entropy_keeps_its_gradient() -> None:
    x = torch.tensor([[1000.0, 0, -5, 3]], requires_grad=True)
    torch.nn.functional.cross_entropy(x, torch.tensor([0])).backward()
    assert x.grad is not None
    assert (x.grad == 0).all()
    x.grad = None
    from regraft.backends.torch.training.losses import stablemax_cross_entropy

    stablemax_cross_entropy(x, torch.tensor([0])).sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).all()


def test_clipped_softmax_gives_exact_zeros() -> None:
    """Bondarenko et al. 2023."""
    x = torch.randn(1, 1, 1, 512, generator=torch.Generator().manual_seed(0))
    x[..., :4] = 7
    assert (_weights(x, "clipped") == 0).sum() == 0
    assert (_weights(x, "clipped", -0.03) == 0).sum() == 508


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_softplus_attention_is_finite_at_large_logits(dtype: torch.dtype) -> None:
    """Gao et al. 2025: rows sum to 1; scores of 1e4 have finite weights and gradients."""
    x = torch.tensor([1e4, -1e4, 3, 0, 1e4, 2], dtype=dtype).reshape(1, 1, 1, 6)
    x.requires_grad_()
    wide = x.float()
    for power in (0.0, 3.0, 15.0):
        weights = _weights(wide, "softplus", power)
        assert weights.sum().item() == pytest.approx(1, abs=1e-6)
        x.grad = None
        (weights * torch.arange(6)).sum().backward()
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()


def test_reweighting_by_one_changes_nothing() -> None:
    x = torch.randn(2, 3, 4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(_weights(x, "softplus", 1.0, 0.0), _weights(x, "softplus"))


def test_entropy_of_reweighted_softplus_grows_less_with_length() -> None:
    def entropy(weights: torch.Tensor) -> float:
        return float(-(weights * weights.clamp(min=1e-30).log()).sum(-1).mean())

    def grown(make: str) -> float:
        entropies = []
        for n in (256, 4096):
            rng = torch.Generator().manual_seed(2)
            cosines = torch.randn(1, 1, 8, n, dtype=torch.float64, generator=rng) / 8
            if make == "softmax":
                entropies.append(entropy(_weights(8 * cosines, "softmax")))
            else:
                x = cosines * np.log(64) * np.log(n)
                entropies.append(entropy(_weights(x, "softplus", 15.0)))
        return entropies[1] - entropies[0]

    assert grown("softplus") < grown("softmax")


def _sorted_entmax15(z: np.ndarray) -> np.ndarray:
    """Peters et al. 2019, algorithm 2."""
    x = (z - z.max()) / 2
    ordered = np.sort(x)[::-1]
    k = np.arange(1, len(x) + 1)
    mean = np.cumsum(ordered) / k
    spread = k * (np.cumsum(ordered**2) / k - mean**2)
    tau = mean - np.sqrt(np.maximum((1 - spread) / k, 0))
    return np.maximum(x - tau[(tau <= ordered).sum() - 1], 0) ** 2


def test_halley_needs_a_tenth_of_the_steps_of_bisection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gonçalves et al. 2025: 512 keys, alpha 1.5, a residual of 1e-12."""
    z = np.random.default_rng(0).standard_normal(512)
    x = torch.from_numpy(z).reshape(1, 1, 1, -1)
    scaled = (x - x.max()) * 0.5

    def residual(steps: int) -> float:
        monkeypatch.setattr(weighing, "ROOT_STEPS", steps)
        tau = weighing.entmax_threshold(scaled, _all(x), torch.tensor(0.5))
        return abs(float(((scaled - tau).clamp(min=0) ** 2).sum()) - 1)

    low, high, bisections, total = -1.0, -(512**-0.5), 0, 0.0
    while abs(total - 1) >= 1e-12:
        tau = (low + high) / 2
        total = float(((scaled - tau).clamp(min=0) ** 2).sum())
        low, high = (tau, high) if total > 1 else (low, tau)
        bisections += 1
    steps = next(n for n in range(40) if residual(n) < 1e-12)
    assert steps <= 6
    assert bisections >= 5 * steps
    monkeypatch.undo()
    found = _weights(x, "entmax", 1.5).flatten().numpy()
    np.testing.assert_allclose(found, _sorted_entmax15(z), atol=1e-15)


def test_entmax_lies_between_softmax_and_sparsemax() -> None:
    """Correia et al. 2019: alpha near 1 is softmax; 2 is sparsemax."""
    x = torch.randn(1, 2, 3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    near = _weights(x, "entmax", 1.0001)
    assert float((near - _weights(x, "softmax")).abs().max()) < 1.3e-4
    sparse = _weights(x, "entmax", 2.0)
    ordered = x.sort(-1, descending=True).values
    k = torch.arange(1, 21)
    inside = 1 + k * ordered > ordered.cumsum(-1)
    count = inside.sum(-1, keepdim=True)
    tau = (ordered.cumsum(-1).gather(-1, count - 1) - 1) / count
    torch.testing.assert_close(sparse, (x - tau).clamp(min=0))


def test_alpha_per_head_is_learned() -> None:
    x = torch.randn(1, 2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    alpha = torch.tensor([1.2, 1.7], dtype=torch.float64)

    def run(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        return weighing.normalized(x, _all(x), "entmax", (), None, alpha)

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), alpha.requires_grad_()))


def _selective(budget: float, x: torch.Tensor) -> torch.Tensor:
    S, T = x.shape[2:]
    shown = torch.ones(1, 1, S, T, dtype=torch.bool).tril()
    moved, kept = weighing.pass_over(x, shown, 0, budget)
    kept = kept.expand(x.shape)
    return torch.where(kept, weighing.softmax_of_shown(moved, kept, None), 0)


def test_nothing_is_passed_over_where_the_first_head_chooses_nothing() -> None:
    """Leviathan et al. 2025: S = 0 is attention as it was."""
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    x[:, 0] = -x[:, 0].abs()
    plain = x.masked_fill(~torch.ones(8, 8, dtype=torch.bool).tril(), -torch.inf).softmax(-1)
    torch.testing.assert_close(_selective(0.0, x), plain)


def test_the_error_of_eviction_falls_to_zero_with_the_budget() -> None:
    x = torch.randn(1, 3, 40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    v = torch.randn(1, 3, 40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    whole = _selective(0.0, x) @ v
    errors = [float((_selective(t, x) @ v - whole).norm()) for t in (1.0, 2.0, 4.0, 8.0, 100.0)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0
    assert errors[-1] == 0


def test_torch_and_numpy_agree_on_rows_without_keys() -> None:
    x = np.random.default_rng(8).standard_normal((1, 2, 3, 5))
    shown = np.ones((1, 2, 3, 5), bool)
    shown[0, :, 1] = False
    for name in ("softmax", "clipped", "stablemax", "softplus", "entmax", "top_k"):
        attrs = {"normalizer": name, "normalizer_parameters": ()}
        tensors = torch.from_numpy(x), torch.from_numpy(shown)
        found = torch.where(tensors[1], weighing.normalized(*tensors, name, ()), 0).numpy()
        np.testing.assert_allclose(found, weights_of(attrs, x, shown), atol=1e-14)
        assert (found[0, :, 1] == 0).all()
