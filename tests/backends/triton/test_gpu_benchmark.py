"""The benchmark for GPUs runs every row, on tiny sizes in the interpreter."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")
pytest.importorskip("transformers", reason="needs the extra `hf`")

from benchmarks.gpu import __main__ as benchmark
from benchmarks.gpu import peers
from benchmarks.gpu.__main__ import has_failed, line
from benchmarks.gpu.model_rows import MODELS
from benchmarks.gpu.row import INDUCTOR, Row
from benchmarks.gpu.timing import Measured, Times, seconds
from tests.backends.triton.harness import interpreted

NUMBERS = 20
"""Rows of the table of goals."""

# numpy's, of lanes that are masked
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")


def test_every_row_of_the_table_runs(capsys):
    with interpreted():
        assert benchmark.main(["--tiny"]) == 0
    first, second, *lines = capsys.readouterr().out.splitlines()
    assert "no figure of speed" in first
    assert all(name in second for name in peers.absent())
    kinds = [text.split()[0] for text in lines]
    assert set(kinds) == {"model", *map(str, range(1, NUMBERS + 1))}
    assert kinds.count("model") == len(MODELS)
    timed = [text for text in lines if "generated chains" not in text]  # their mean ratio
    assert len(timed) == len(lines) - 1
    assert all("ms" in text and ("TB/s" in text or "TFLOP/s" in text) for text in timed)
    assert not any("FAILED" in text for text in lines)


def test_a_line_says_what_was_left_out():
    row = Row(1, "norm 3x4", lambda: list, num_bytes=8, goal="90 % of a copy")
    found = {"ours": Times(2e-3, 1e-3, 3e-3), "eager": Times(4e-3, 4e-3, 4e-3)}
    text = line(row, Measured(found), (8e3, 1.0), [INDUCTOR])
    assert "2.000 ms" in text
    assert "50.0 %" in text
    assert "eager x2.00; no time for inductor; asked: 90 % of a copy" in text
    alone = Measured({"eager": found["eager"]}, without_room=["ours"])
    assert "no room on this GPU" in line(row, alone, (8e3, 1.0), [])


def test_what_has_no_room_is_left_out():
    def full():
        raise torch.cuda.OutOfMemoryError

    found = seconds({"ours": lambda: list, "eager": full}, "cpu", 1)
    assert (list(found.times), found.without_room) == (["ours"], ["eager"])


def broken():
    raise RuntimeError("an illegal access\nand more")


@pytest.mark.parametrize(("name", "is_ours"), [("ours", True), ("liger", False)])
def test_what_fails_is_told_and_the_others_go_on(name, is_ours):
    row = Row(1, "norm 3x4", lambda: list, num_bytes=8)
    for made in (broken, lambda: broken):
        found = seconds({name: made, "eager": lambda: list}, "cpu", 1)
        assert list(found.times) == ["eager"]
        text = line(row, found, (8e3, 1.0), [])
        assert f"FAILED {name}: RuntimeError: an illegal access" in text
        assert has_failed([text]) == is_ours


def test_a_family_that_cannot_be_made_ends_no_other(monkeypatch, capsys):
    def one(*names):
        for name in names:
            if name is None:
                raise ValueError("no such model")
            yield Row(1, name, lambda: list, num_bytes=8)

    monkeypatch.setattr(benchmark, "families", lambda *_: iter((one("a", None, "b"), one("c"))))
    assert benchmark.main(["--tiny"]) == 1
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [text.split()[1] for text in lines] == ["a", "a", "c"]
    assert "FAILED a row: ValueError: no such model" in lines[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so(capsys):
    assert benchmark.main([]) == 1
    assert "no GPU is here" in capsys.readouterr().err
