"""Attention with alpha-entmax weights: results, gradients, and the tiles that are left out."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from torch import nn

import regraft
from regraft.backends.torch.library.weighing import entmax
from regraft.backends.triton.kernels.entmax import entmax_forward
from regraft.backends.triton.kernels.entmax_backward import entmax_attention, entmax_backward
from tests.backends.triton.harness import assert_close, check, interpreted, laid_out

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")


def exact(q, k, v, alpha=1.5, shown=None):
    """The operator as PyTorch's own graph computes it."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.transpose(-1, -2) * q.shape[3] ** -0.5
    seen = torch.ones_like(scores, dtype=torch.bool) if shown is None else shown
    weights = entmax(scores, seen.expand(scores.shape), alpha)
    return torch.where(seen.any(-1, keepdim=True), weights, 0) @ v


def operands(S, T, D=16, H=2, G=1, scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(S + T)
    shapes = ((1, H, S, D), (1, G, T, D), (1, G, T, D))
    made = [torch.randn(shape, generator=generator) * scale for shape in shapes]
    return [laid_out(x.to(dtype), "contiguous") for x in made]


@pytest.mark.parametrize("alpha", [1.5, 2.0, 1.3])
@pytest.mark.parametrize(("S", "T"), [(1, 1), (33, 65), (7, 127)])
def test_results_and_gradients(S, T, alpha):
    check(
        lambda q, k, v: entmax_attention(q, k, v, alpha=alpha),
        lambda q, k, v: exact(q, k, v, alpha),
        operands(S, T),
    )


@pytest.mark.parametrize("scale", [30.0, 1e-3])
def test_scores_of_any_size(scale):
    check(entmax_attention, exact, operands(17, 40, scale=scale**0.5))


def test_f16():
    check(entmax_attention, exact, operands(20, 40, dtype=torch.float16))


def test_causal_windows_lengths_and_masks():
    q, k, v = operands(20, 40, H=4, G=2)
    row, column = torch.arange(20)[:, None] + 20, torch.arange(40)
    causal = (column <= row) & (column >= row - 9)
    check(
        lambda q, k, v: entmax_attention(q, k, v, offset=20, window=(9, 0)),
        lambda q, k, v: exact(q, k, v, shown=causal),
        (q, k, v),
    )
    mask = torch.rand(20, 40, generator=torch.Generator().manual_seed(0)) > 0.5
    mask[3] = False  # sees nothing
    seen = mask & (column < 33)
    check(
        lambda q, k, v: entmax_attention(q, k, v, mask, lengths=torch.tensor([33])),
        lambda q, k, v: exact(q, k, v, shown=seen),
        (q, k, v),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_alphas_of_heads_have_gradients(dtype):
    """Correia et al. 2019: heads learn how sparse they are."""
    column, row = torch.arange(40), torch.arange(33)[:, None] + 7
    check(
        lambda q, k, v, alpha: entmax_attention(q, k, v, alpha=alpha, offset=7, window=(-1, 0)),
        lambda q, k, v, alpha: exact(q, k, v, alpha, column <= row),
        [
            *operands(33, 40, H=4, G=2, dtype=dtype),
            torch.tensor([1.2, 1.5, 1.75, 2.0], dtype=dtype),
        ],
    )


def test_alphas_of_other_heads_are_refused():
    with pytest.raises(ValueError, match=r"alpha \[3\] for 2 heads"):
        entmax_attention(*operands(2, 2), alpha=torch.full((3,), 1.5))


WIDE = (torch.float64, torch.float32)


def graph(*operands):
    """Returns attention with weights of alpha 1.5, and the gradients of its sum."""
    q, k, v = (x.detach().clone().requires_grad_() for x in operands)
    scores = q @ k.transpose(-1, -2)
    result = entmax(scores, torch.ones_like(scores, dtype=torch.bool), 1.5) @ v
    return result.detach(), *torch.autograd.grad(result.sum(), (q, k, v))


def test_tiles_without_weight_are_left_out():
    """Named check of AdaSplash: most tiles are skipped where few keys matter, results are equal."""
    q, k, v = operands(64, 256, H=1)
    k = k * 0.01
    q[..., 0], k[..., 0] = 2.0, 0.0
    k[:, :, 100:130, 0] = 6.0  # the only keys of any row
    with interpreted():
        out, bounds, used = entmax_forward(q, k, v, None, None, None, 1.5, 1.0, 0, -1, -1, "ieee")
        dense = entmax_forward(q, k * 0.01, v, None, None, None, 1.5, 0.01, 0, -1, -1, "ieee")[2]
        given = torch.ones_like(out)
        gradients = entmax_backward(
            given, q, k, v, None, None, None, bounds, used, 1.5, 1.0, 0, -1, -1, "ieee"
        )[:3]
    skipped = (used == 0).sum().item() / used.numel()
    assert skipped >= 0.5, used
    assert used.sum() > 0
    assert (dense == 1).all()
    exact, usual = (graph(q.to(wide), k.to(wide), v.to(wide)) for wide in WIDE)
    for idx, found in enumerate((out, *gradients)):
        assert_close(found, exact[idx], usual[idx], f"{idx}", slack=2.0 if idx else 1.0)


def test_an_alpha_of_softmax_is_refused():
    with pytest.raises(ValueError, match=r"alpha is 1\.0, expected above 1"):
        entmax_attention(*operands(2, 2), alpha=1.0)


class Attending(nn.Module):
    def forward(self, q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)


@pytest.mark.slow
@pytest.mark.parametrize("options", ["alpha=1.5", "learned=true"])
def test_packages_of_models_with_entmax_call_it(tmp_path, options):
    example = tuple(operands(8, 8, G=2))
    with interpreted():
        regraft.convert(
            Attending().eval(), tmp_path / "package", args=example, target="triton", check="off",
            passes=f"canonicalize,fuse,replace-softmax{{variant=entmax,{options}}}",
        )  # fmt: skip
    assert "kernels.entmax_attention(" in (tmp_path / "package" / "model.py").read_text()
    assert "def entmax_attention_kernel(" in (tmp_path / "package" / "kernels.py").read_text()


@pytest.mark.parametrize("alpha", [None, torch.tensor([1.4, 1.7])], ids=["one", "by head"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_opcheck(direction, alpha):
    q, k, v = (x.contiguous() for x in operands(9, 20))
    settings = (1.5, 0.25, 0, -1, -1, "ieee")
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    with interpreted():
        out, bounds, used = entmax_forward(q, k, v, None, None, alpha, *settings)
        if direction == "forward":
            given = [x.clone().requires_grad_() for x in (q, k, v)]
            torch.library.opcheck(
                entmax_forward, (*given, None, None, alpha, *settings), test_utils=tests
            )
        else:
            torch.library.opcheck(
                entmax_backward, (out, q, k, v, None, None, alpha, bounds, used, *settings),
                test_utils=tests,
            )  # fmt: skip
