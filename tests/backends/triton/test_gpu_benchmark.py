"""The benchmark for GPUs runs every row, on tiny sizes in the interpreter."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from benchmarks.gpu import __main__ as benchmark
from tests.backends.triton.harness import interpreted


def test_every_row_runs(capsys):
    with interpreted():
        assert benchmark.main(["--tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "no figure of speed" in lines[0]
    assert len(lines) == 29
    assert all("ms" in line and ("TB/s" in line or "TFLOP/s" in line) for line in lines[1:])
    names = ("rms_norm backward", "swiglu", "linear_attention backward",
             "attention causal backward", "entmax sparse", "decode unified", "experts backward",
             "low_bit_linear 4 bits", "low_bit_integer_linear")  # fmt: skip
    assert all(any(line.startswith(name) for line in lines) for name in names)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so(capsys):
    assert benchmark.main([]) == 1
    assert "no GPU is here" in capsys.readouterr().err
