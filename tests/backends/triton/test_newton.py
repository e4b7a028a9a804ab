"""Newton's inverse: the interpreted kernels against PyTorch in f64, and where models have it."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

import regraft
from regraft.backends.triton.kernels.newton import newton_inverse
from regraft.backends.triton.package import load_package, save_package
from tests.backends.triton.harness import LAYOUTS, check, interpreted, laid_out


def matrices(*shape):
    """Returns symmetric ones with positive eigenvalues near 1, as those of landmarks are."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    return x @ x.mT * (0.3 / shape[-1]) + torch.eye(shape[-1])


def loop(a, start, steps):
    for _ in range(steps):
        start = 2 * start - start @ a @ start
    return start


@pytest.mark.parametrize("N", [1, 7, 16, 33, 63])
def test_steps_and_gradients_agree_with_the_oracle(N):
    a = matrices(2, N, N)
    inputs = [a, a.mT * 0.2]
    check(lambda a, x: newton_inverse(a, x, steps=4), lambda a, x: loop(a, x, 4), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_are_f32_in_sixteen_bits(dtype):
    a = matrices(3, 17, 17).to(dtype)
    check(lambda a, x: newton_inverse(a, x, steps=3), lambda a, x: loop(a, x, 3), [a, 0.3 * a])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_matrices_of_any_strides(layout):
    a = laid_out(matrices(2, 2, 9, 9), layout)
    check(lambda a: newton_inverse(a, steps=3), lambda a: newton_start(a, 3), [a])


def newton_start(a, steps):
    rows, columns = a.abs().sum(-1).amax(-1), a.abs().sum(-2).amax(-1)
    return loop(a, a.mT / (rows * columns)[..., None, None], steps)


def test_it_finds_the_inverse():
    # not symmetric: the default start converges for any matrix that has an inverse
    a = matrices(2, 12, 12) + 0.2 * torch.randn(2, 12, 12)
    with interpreted():
        found = newton_inverse(a, steps=20)
    assert torch.allclose(found @ a, torch.eye(12).expand(2, 12, 12), atol=1e-4)


def test_larger_matrices_are_those_of_pytorch():
    a = matrices(1, 65, 65)
    assert torch.equal(newton_inverse(a, 0.2 * a, steps=3), loop(a, 0.2 * a, 3))


def test_nothing_is_launched_for_no_matrices():
    assert newton_inverse(torch.ones(0, 3, 3), steps=2).shape == (0, 3, 3)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"expected \[\.\.\., N, N\]"):
        newton_inverse(torch.ones(2, 3, 4))


class Iterates(torch.nn.Module):
    """Two iterations, the second of which shows an iterate; and steps that differ."""

    def forward(self, a, b):
        x = 0.1 * a
        for _ in range(5):
            x = 2 * x - x @ a @ x
        y = shown = 0.1 * b
        for step in range(6):
            y = (y + y) - y @ b @ y
            shown = y if step == 2 else shown
        other = 2 * a - a @ b @ b
        return x, y, shown, other


def test_steps_of_a_model_become_one_call(tmp_path):
    a, b = matrices(2, 8, 8), matrices(3, 2, 8, 8)[0]
    net = Iterates()
    module = regraft.capture(net, (a, b))
    regraft.apply(module, "canonicalize,fuse", check="off")
    save_package(module, tmp_path)
    text = (tmp_path / "model.py").read_text()
    steps = [part.split(")")[0] for part in text.split("steps=")[1:]]
    assert sorted(map(int, steps)) == [3, 3, 5]
    with interpreted():
        found = load_package(tmp_path)(a, b)
    for one, other in zip(found, net(a, b), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
