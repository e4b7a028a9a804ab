"""`rerun` after passes on weights, layers and activations: the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import regraft
from regraft.cli.main import cli
from tests.passes.depth.stacks import samples, stack


@pytest.mark.parametrize(
    "passes",
    [
        "canonicalize,fuse,sparsify{rate=0.6,allocation=dp}",
        "canonicalize,factorize{method=mpo,rate=0.3}",
        "drop-layers{rate=0.25},factorize{rank=3}",
        "tie-layers{block=2,rank=2}",
        "sparsify-activations{rate=0.4,cut=threshold}",
    ],
)
def test_the_same_bytes_are_written_again(passes: str, tmp_path: Path) -> None:
    source, given, out = (tmp_path / name for name in ("stack.onnx", "samples.npz", "out"))
    regraft.save(stack(4), source)
    np.savez(given, h0=samples(1)[0]["h0"])
    arguments = ["convert", str(source), "-o", str(out), "--calibrate", str(given)]
    done = CliRunner().invoke(cli, [*arguments, "--passes", passes])
    assert done.exit_code == 0, done.output
    again = CliRunner().invoke(cli, ["rerun", str(out)])
    assert again.exit_code == 0, again.output
    assert "identical" in again.output
