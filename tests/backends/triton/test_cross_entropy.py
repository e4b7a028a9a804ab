"""Cross-entropy of a linear layer in the interpreter, with gradients."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from regraft import kernels
from regraft.backends.triton.kernels import vocabulary_loss
from regraft.backends.triton.kernels.cross_entropy import reference_cross_entropy
from tests.backends.triton.harness import LAYOUTS, check, interpreted, laid_out
from tests.backends.triton.test_attention import normal


def compare(x, weight, labels, **settings):
    softcap = settings.get("softcap", 0.0)

    def written_out(x, weight):
        logits = F.linear(x, weight)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        reduction = settings.get("reduction", "mean")
        loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction=reduction)
        return loss.reshape(labels.shape) if reduction == "none" else loss

    def kernel(x, weight):
        return kernels.linear_cross_entropy(x, weight, labels, **settings)

    check(kernel, written_out, [x, weight])


def labels_of(*shape, words):
    return torch.randint(words, shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("settings", [{}, {"softcap": 1.0}, {"reduction": "none"}], ids=str)
def test_the_loss_agrees_with_the_oracle(dtype, settings):
    labels = labels_of(3, 5, words=130)
    labels[0, 2] = labels[2, 4] = -100
    x, weight = normal(3, 5, 33, dtype=dtype), normal(130, 33, dtype=dtype, seed=1)
    compare(x * 0.3, weight, labels, **settings)


@pytest.mark.parametrize(("M", "V", "K"), [(1, 1, 1), (65, 63, 16), (12, 1000, 40)])
def test_the_loss_takes_any_size(M, V, K):
    compare(normal(M, K), normal(V, K, seed=1), labels_of(M, words=V), reduction="sum")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_loss_reads_any_strides(layout):
    x, weight = laid_out(normal(4, 20), layout), laid_out(normal(70, 20, seed=1), layout)
    compare(x, weight, labels_of(4, words=70))


@pytest.mark.parametrize("scale", [30.0, 1e-3])
def test_the_loss_takes_extreme_inputs(scale):
    compare(normal(4, 20) * scale, normal(70, 20, seed=1), labels_of(4, words=70))


def test_the_reference_keeps_the_digits_of_a_small_loss():
    # logits 100 and 95: half a step of 100 is 4e-6, the loss is 7e-3
    x, weight, labels = torch.tensor([[1.0]]), torch.tensor([[100.0], [95.0]]), torch.tensor([0])
    loss, _ = reference_cross_entropy(x, weight, labels, 0.0, 0.0, "ieee")
    # the sum of exponentials, 1 and some, is rounded once
    torch.testing.assert_close(loss, torch.tensor([-5.0]).exp().log1p(), rtol=0, atol=2**-23)


def test_chunks_of_the_vocabulary_change_nothing(monkeypatch):
    x, weight = normal(4, 20), normal(130, 20, seed=1)
    found = []
    for chunk in (8192, 48):
        monkeypatch.setattr(vocabulary_loss, "CHUNK", chunk)
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        with interpreted():
            kernels.linear_cross_entropy(*leaves, labels_of(4, words=130)).backward()
        found.append([leaf.grad for leaf in leaves])
    # sums of 130 words, and of 4 rows, in another order
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=130 * 2**-24)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=4 * 2**-22)


def test_no_rows_and_another_reduction():
    empty = kernels.linear_cross_entropy(
        torch.ones(0, 4), torch.ones(3, 4), torch.ones(0, dtype=torch.int64), reduction="sum"
    )
    assert empty == 0
    with pytest.raises(ValueError, match="not mean, sum or none"):
        kernels.linear_cross_entropy(torch.ones(1, 4), torch.ones(3, 4), torch.zeros(1).long(),
                                     reduction="max")  # fmt: skip


def peaked(rows, words, width):
    """Returns rows that give one word nearly everything, the matrix, and other labels for two."""
    weight = normal(words, width, seed=1)
    labels = labels_of(rows, words=words // 5)
    x = weight[labels]
    labels[:2] = (labels[:2] + 7) % (words // 5)
    return x, weight, labels


def gradients_of(x, weight, labels, **settings):
    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    with interpreted():
        kernels.linear_cross_entropy(*leaves, labels, reduction="sum", **settings).backward()
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("softcap", [0.0, 300.0])
def test_the_filter_leaves_out_what_is_below_its_threshold(monkeypatch, dtype, softcap):
    x, weight, labels = peaked(70, 300, 64)
    x, weight = x.to(dtype), weight.to(dtype)
    kept = []
    product = vocabulary_loss.filtered_product
    monkeypatch.setattr(
        vocabulary_loss, "filtered_product",
        lambda d, other, tiles, *rest: kept.append(tiles) or product(d, other, tiles, *rest),
    )  # fmt: skip
    whole = gradients_of(x, weight, labels, softcap=softcap)
    assert not kept
    filtered = gradients_of(x, weight, labels, softcap=softcap, filter_below=2**-12)
    share = kept[0].float().mean().item()
    assert 0 < share < 0.7
    # each element that is left out is below 2^-12; sums of them, and of the others in another order
    for found, exact, other in zip(filtered, whole, (weight, x), strict=True):
        bound = 2**-12 * other.float().abs().sum(0).max().item()
        rounding = 4 * torch.finfo(dtype).eps * exact.float().abs().max().item()
        assert (found.float() - exact.float()).abs().max().item() <= bound + rounding


def test_a_filter_that_leaves_nothing_out_changes_nothing_but_the_order():
    x, weight, labels = peaked(9, 130, 20)
    pairs = zip(
        gradients_of(x, weight, labels), gradients_of(x, weight, labels, filter_below=1e-30),
        strict=True,
    )  # fmt: skip
    for exact, found in pairs:
        torch.testing.assert_close(found, exact, rtol=0, atol=2**-20 * exact.abs().max().item())


class Largest(TorchDispatchMode):
    """Notes the largest tensor that is made."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        found = [made] if isinstance(made, torch.Tensor) else made
        if isinstance(found, list | tuple):
            sizes = [item.numel() for item in found if isinstance(item, torch.Tensor)]
            self.elements = max([self.elements, *sizes])
        return made


def test_no_tensor_is_as_large_as_the_logits(monkeypatch):
    monkeypatch.setattr(vocabulary_loss, "CHUNK", 64)
    rows, words, width = 40, 320, 16
    x, weight = (normal(n, width, seed=n).requires_grad_() for n in (rows, words))
    with interpreted(), Largest() as noted:
        kernels.linear_cross_entropy(x, weight, labels_of(rows, words=words)).backward()
    # the gradient by the matrix itself
    assert noted.elements == words * width < rows * words
