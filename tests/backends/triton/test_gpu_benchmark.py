"""The benchmark for GPUs runs every row, on tiny sizes in the interpreter."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")
pytest.importorskip("transformers", reason="needs the extra `hf`")

from benchmarks.gpu import __main__ as benchmark
from benchmarks.gpu import peers
from benchmarks.gpu.__main__ import Times, line, seconds
from benchmarks.gpu.model_rows import MODELS
from benchmarks.gpu.row import INDUCTOR, Row
from tests.backends.triton.harness import interpreted

NUMBERS = 20
"""Rows of the table of goals."""
WITHOUT_A_KERNEL = {"cross_entropy of logits, with gradient", "Newton inverse"}

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
    assert all("ms" in text and ("TB/s" in text or "TFLOP/s" in text) for text in lines)
    without = {text.split(None, 1)[1].rpartition(" no kernel of ours")[0].rsplit(None, 1)[0]
               for text in lines if "no kernel of ours" in text}  # fmt: skip
    assert {name.strip() for name in without} == WITHOUT_A_KERNEL


def test_a_line_says_what_was_left_out():
    row = Row(1, "norm 3x4", None, num_bytes=8, goal="90 % of a copy")
    found = {"ours": Times(2e-3, 1e-3, 3e-3), "eager": Times(4e-3, 4e-3, 4e-3)}
    text = line(row, found, (8e3, 1.0), [INDUCTOR])
    assert "2.000 ms" in text
    assert "50.0 %" in text
    assert "eager x2.00; no time for inductor; asked: 90 % of a copy" in text
    assert "no kernel of ours" in line(row, {"eager": found["eager"]}, (8e3, 1.0), [])


def test_what_has_no_room_is_left_out():
    def full():
        raise torch.cuda.OutOfMemoryError

    assert list(seconds({"ours": lambda: list, "eager": full}, "cpu", 1)) == ["ours"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so(capsys):
    assert benchmark.main([]) == 1
    assert "no GPU is here" in capsys.readouterr().err
