"""Cross-entropy of logits in memory: the interpreted kernels against PyTorch in f64."""

import functools

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from torch.nn import functional as F

import regraft
from regraft.backends.triton.kernels import logit_losses
from regraft.backends.triton.kernels.configs import read_table
from regraft.backends.triton.kernels.logit_losses import cross_entropy, scale_rows
from regraft.backends.triton.package import load_package, save_package
from tests.backends.triton.harness import LAYOUTS, check, interpreted, laid_out


def seeded(*shape, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def labels_of(M, V):
    labels = torch.arange(M) * 7 % V
    labels[1::3] = -100
    return labels


def usual(x, labels, reduction="mean", label_smoothing=0.0, z_loss=0.0, softcap=0.0):
    """The same in PyTorch's operators; F.cross_entropy's share of smoothing is over V as well."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    x = softcap * torch.tanh(x / softcap) if softcap else x
    loss = F.cross_entropy(x, labels, reduction="none", label_smoothing=label_smoothing)
    counted = labels != -100
    loss = torch.where(counted, loss + z_loss * x.logsumexp(-1).square(), 0)
    match reduction:
        case "none":
            return loss
        case "sum":
            return loss.sum()
        case _:
            return loss.sum() / counted.sum()


OPTIONS = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "rows": {"reduction": "none"},
    "smoothed": {"label_smoothing": 0.1, "z_loss": 1e-2},
    "capped": {"softcap": 3.0, "label_smoothing": 0.2, "z_loss": 0.1},
}


@pytest.mark.parametrize("in_place", [False, True], ids=["apart", "in place"])
@pytest.mark.parametrize("name", OPTIONS)
def test_losses_and_gradients_agree_with_the_oracle(name, in_place):
    labels = labels_of(5, 65)

    def ours(x):
        # in place, the kernel writes over what it is given: not over the test's logits
        return cross_entropy(x * 1 if in_place else x, labels, in_place=in_place, **OPTIONS[name])

    check(ours, functools.partial(usual, labels=labels, **OPTIONS[name]), [seeded(5, 65, scale=3)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("in_place", [False, True], ids=["apart", "in place"])
def test_rows_longer_than_a_block_are_read_in_parts(in_place, dtype, monkeypatch):
    bucket = {"up_to": 1 << 30, "max_block": 64, "warps": 4}
    bucket |= {"in_place_block": 128, "in_place_warps": 8}
    monkeypatch.setitem(read_table(), "logit_loss", {"default": {"any": [bucket]}})
    labels = labels_of(4, 1000)
    options = {"label_smoothing": 0.1, "softcap": 30.0}

    def ours(x):
        return cross_entropy(x * 1 if in_place else x, labels, in_place=in_place, **options)

    reference = functools.partial(usual, labels=labels, **options)
    check(ours, reference, [seeded(4, 1000, scale=20).to(dtype)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_of_any_strides(layout):
    labels = labels_of(3, 17)
    x = laid_out(seeded(3, 17), layout)
    check(lambda x: cross_entropy(x, labels), functools.partial(usual, labels=labels), [x])


@pytest.mark.parametrize("V", [1, 63, 127])
def test_odd_widths_and_extreme_logits(V):
    labels = labels_of(3, V)
    x = seeded(3, V, scale=1e4)
    x[0, 0] = -torch.inf if V > 1 and labels[0] != 0 else x[0, 0]
    check(lambda x: cross_entropy(x, labels), functools.partial(usual, labels=labels), [x])


def test_in_place_the_logits_become_their_gradient():
    x = seeded(4, 33).requires_grad_()
    logits = x * 2
    with interpreted():
        loss = cross_entropy(logits, labels_of(4, 33), in_place=True)
        (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.data_ptr() == logits.data_ptr()
    expected = (x.detach().double() * 2).requires_grad_()
    (wanted,) = torch.autograd.grad(usual(expected, labels_of(4, 33)), expected)
    assert torch.allclose(gradient.double(), wanted, atol=1e-7, rtol=1e-5)


def test_a_gradient_of_one_reads_and_writes_nothing(monkeypatch):
    noted = []
    monkeypatch.setattr(
        logit_losses, "scale_rows", lambda x, factor: noted.append(factor) or scale_rows(x, factor)
    )
    with interpreted():
        logits = seeded(2, 9).requires_grad_() * 1
        (gradient,) = torch.autograd.grad(
            cross_entropy(logits, torch.tensor([3, -100]), in_place=True), logits
        )
        # the factor of the mean is in the gradient already
        assert [factor.tolist() for factor in noted] == [[1.0, 1.0]]
        assert gradient[1].abs().sum() == 0
        rows = torch.full((2, 3), torch.nan)
        scale_rows(rows[:, :2], torch.tensor([1.0, 2.0]))
    assert rows.isnan().all()


def test_a_second_backward_in_place_is_refused():
    logits = seeded(2, 9).requires_grad_() * 1
    with interpreted():
        loss = cross_entropy(logits, torch.tensor([3, 4]), in_place=True)
        torch.autograd.grad(loss, logits, retain_graph=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(loss, logits)


def test_without_a_gradient_the_logits_stay():
    logits = seeded(2, 9)
    before = logits.clone()
    with interpreted():
        cross_entropy(logits, torch.tensor([3, 4]), in_place=True)
    assert torch.equal(logits, before)


def test_what_it_does_not_take_is_refused():
    logits = seeded(4, 8).requires_grad_()
    with pytest.raises(ValueError, match="not mean, sum or none"):
        cross_entropy(logits, labels_of(4, 8), reduction="all")
    with pytest.raises(ValueError, match="no place for a gradient"):
        cross_entropy(logits[:, :5], labels_of(4, 5), in_place=True)


class Shown(torch.nn.Module):
    """A head whose logits are a result beside their loss."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(8, 19, bias=False)

    def forward(self, x, labels):
        logits = self.head(x)
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten()), logits


def test_the_loss_of_logits_that_a_model_shows_is_one_kernel_and_trains(tmp_path):
    torch.manual_seed(0)
    net, x, labels = Shown(), seeded(2, 5, 8), torch.tensor([[1, 18, -100, 0, 7], [3, 2, 1, 0, 4]])
    module = regraft.capture(net, (x, labels))
    regraft.apply(module, "canonicalize,fuse", check="off")
    save_package(module, tmp_path)
    text = (tmp_path / "model.py").read_text()
    assert "kernels.cross_entropy(" in text
    assert "log_softmax" not in text
    with interpreted():
        package = load_package(tmp_path)
        found, logits = package(x, labels)
        (gradient,) = torch.autograd.grad(found + logits.sum(), list(package.parameters()))
    expected, usual_logits = net(x, labels)
    (wanted,) = torch.autograd.grad(expected + usual_logits.sum(), list(net.parameters()))
    # f32: sums of 8 and 19 terms near 1
    assert torch.allclose(found, expected, rtol=1e-6)
    assert torch.allclose(logits, usual_logits, atol=1e-6)
    assert torch.allclose(gradient, wanted, rtol=1e-5, atol=1e-6)
