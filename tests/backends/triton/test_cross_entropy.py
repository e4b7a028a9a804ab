"""Cross-entropy of a linear layer in the interpreter, with gradients."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from torch.nn import functional as F

from regraft import kernels
from regraft.backends.triton.kernels import cross_entropy
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


def test_chunks_of_the_vocabulary_change_nothing(monkeypatch):
    x, weight = normal(4, 20), normal(130, 20, seed=1)
    found = []
    for chunk in (8192, 48):
        monkeypatch.setattr(cross_entropy, "CHUNK", chunk)
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
