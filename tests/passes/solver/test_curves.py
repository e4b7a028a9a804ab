"""Loss curves: measured once, resumed, additive or not; spectra of weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from regraft.ir.errors import InputError
from regraft.passes.solver import CurveStore, additivity, measure_curves
from regraft.passes.solver.spectral import spectral_weights, tail_exponent

LEVELS = {"a": (0.25, 0.5, 1.0), "b": (0.5, 0.75, 1.0)}


@dataclass
class Source:
    """A loss of what is missing, with a part for what is missing together."""

    joint: float = 0.0
    fingerprint: str = "one"
    fails_at: int = 1000
    asked: list[dict[str, float]] = field(default_factory=list)

    def loss(self, levels: Mapping[str, float]) -> float:
        if len(self.asked) >= self.fails_at:
            raise KeyboardInterrupt
        self.asked.append(dict(levels))
        gone = [1 - level for level in levels.values()]
        return sum(part**2 for part in gone) + self.joint * float(np.prod(gone or [0.0])) * len(
            gone
        )


def test_every_level_is_measured_alone_and_whole_units_not_at_all() -> None:
    source = Source()
    units = measure_curves(source, LEVELS)
    assert source.asked == [{"a": 0.25}, {"a": 0.5}, {"b": 0.5}, {"b": 0.75}]
    assert units[0].losses.tolist() == [0.75**2, 0.25, 0.0]
    assert units[1].levels.tolist() == [0.5, 0.75, 1.0]


def test_what_was_interrupted_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "curves.jsonl"
    first = Source(fails_at=2)
    with pytest.raises(KeyboardInterrupt):
        measure_curves(first, LEVELS, CurveStore(path))
    with path.open("a") as file:
        file.write('{"key": "cut o')  # a write that did not end
    second = Source()
    store = CurveStore(path)
    units = measure_curves(second, LEVELS, store)
    assert second.asked == [{"b": 0.5}, {"b": 0.75}]
    assert store.num_measured == 2
    third = Source()
    again = measure_curves(third, LEVELS, CurveStore(path))
    assert third.asked == []
    assert [u.losses.tolist() for u in again] == [u.losses.tolist() for u in units]


def test_another_content_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "curves.jsonl"
    measure_curves(Source(), LEVELS, CurveStore(path))
    other = Source(fingerprint="two")
    measure_curves(other, LEVELS, CurveStore(path))
    assert len(other.asked) == 4


def test_a_damaged_cache_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "curves.jsonl"
    path.write_text('{"key": 1}\n{"key": "a", "loss": 1}\n')
    with pytest.raises(InputError, match="line 1"):
        CurveStore(path)


def test_noise_that_says_more_is_worse_is_taken_out() -> None:
    class Noisy(Source):
        def loss(self, levels: Mapping[str, float]) -> float:
            return {0.25: 0.2, 0.5: 0.3}.get(next(iter(levels.values())), 0.1)

    units = measure_curves(Noisy(), {"a": (0.25, 0.5, 0.75, 1.0)})
    assert units[0].losses.tolist() == [0.2, 0.2, 0.1, 0.0]


def test_progress_is_told() -> None:
    seen: list[tuple[int, int]] = []
    measure_curves(Source(), LEVELS, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (6, 6)


def test_losses_that_add_up_have_an_r_squared_of_one() -> None:
    source = Source()
    found = additivity(source, measure_curves(source, LEVELS), count=20)
    assert found.r_squared == pytest.approx(1)
    assert found.rank_correlation == pytest.approx(1)


def test_losses_that_do_not_add_up_are_seen() -> None:
    source = Source(joint=30.0)
    found = additivity(source, measure_curves(source, LEVELS), count=20)
    assert found.r_squared < 0.9
    assert found.rank_correlation <= 1


def _heavy(rng: np.random.Generator, shape: tuple[int, int], tail: float) -> np.ndarray:
    """Returns a matrix whose squared singular values fall as a power law."""
    side = min(shape)
    values = (np.arange(1, side + 1) / side) ** (-1 / (tail - 1))
    left = np.linalg.qr(rng.standard_normal((shape[0], side)))[0]
    right = np.linalg.qr(rng.standard_normal((shape[1], side)))[0]
    return (left * np.sqrt(values)) @ right.T


@pytest.mark.parametrize("tail", [2.0, 3.0, 5.0])
def test_the_exponent_of_a_planted_tail_is_found(tail: float) -> None:
    matrix = _heavy(np.random.default_rng(0), (200, 200), tail)
    assert tail_exponent(matrix) == pytest.approx(tail, rel=0.1)


def test_exponents_of_random_matrices_do_not_depend_on_their_shape() -> None:
    rng = np.random.default_rng(0)
    shapes = [(256, 256), (256, 1024), (1024, 256)]
    windows = [tail_exponent(rng.standard_normal(shape), window=128) for shape in shapes]
    whole = [tail_exponent(rng.standard_normal(shape), window=4096, grid=1) for shape in shapes[:1]]
    assert max(windows) / min(windows) < 1.1
    assert whole[0] == pytest.approx(windows[0], rel=0.25)


def test_exponents_of_gaussian_matrices_do_not_rise_with_their_width() -> None:
    """64 rows and 64 to 1,024 columns: whole spectra say 2.1 to 6, windows 2.1 throughout."""
    rng = np.random.default_rng(0)
    matrices = [rng.standard_normal((64, n)) for n in (64, 128, 256, 512, 1024)]
    whole = []
    for matrix in matrices:
        spectrum = np.linalg.svd(matrix, compute_uv=False) ** 2
        tail = spectrum[:32]
        whole.append(1 + 32 / np.log(tail / spectrum[32]).sum())
    assert whole == sorted(whole)
    assert whole[-1] > 2.4 * whole[0]
    found = [tail_exponent(matrix, window=64) for matrix in matrices]
    assert max(found) < 1.05 * min(found)
    assert found[-1] == pytest.approx(whole[0], rel=0.05)


def test_kernels_have_a_spectrum_of_all_taps() -> None:
    rng = np.random.default_rng(0)
    kernel = np.stack([_heavy(rng, (64, 64), 3.0) for _ in range(9)], -1).reshape(64, 64, 3, 3)
    assert tail_exponent(kernel) == pytest.approx(3.0, rel=0.15)


def test_heavier_tails_keep_more() -> None:
    weights = spectral_weights([2.0, 3.0, 4.0])
    assert weights.tolist() == pytest.approx([0.7, 1.0, 1.3])
    assert spectral_weights([2.0, 2.0]).tolist() == [1.0, 1.0]
