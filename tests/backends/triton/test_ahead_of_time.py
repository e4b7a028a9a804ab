"""Kernels compile for GPUs that are not there, and to the instructions they should become."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")


def compiled(target, cache):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "regraft.backends.triton.ahead_of_time", target],
        capture_output=True,
        text=True,
        env={
            **environment,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "TRITON_CACHE_DIR": str(cache),
        },
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) >= 76
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_every_kernel_compiles_without_spills(target, tmp_path):
    rows = compiled(target, tmp_path)
    assert {row["form"]: row["spilled"] for row in rows if row["spilled"]} == {}
    assert all(row["binary_bytes"] > 0 for row in rows)
    if target == "gfx942":
        assert all(row["matrix_instructions"] for row in rows if row["bound"] == "matmul")
        return
    memory = [row for row in rows if row["bound"] == "memory"]
    # what is narrow: a statistic per row, and the shares of a gradient that programs write once
    allowed = {row["form"]: row["wide_accesses"] - 1 for row in memory}
    allowed["norm-weight-gradient"] = 6
    allowed["decode-merge"] = 20  # maxima and sums of the spans
    narrow = [row["form"] for row in memory if row["narrow_accesses"] > allowed[row["form"]]]
    assert [row["form"] for row in memory if not row["wide_accesses"]] == []
    assert narrow == []
    if target == "sm_90":
        names = ("linear-large", "grouped-large", "grouped-hidden-large", "grouped-gradient",
                 "low-bit-large", "low-bit-integer-large", "attention")  # fmt: skip
        large = [row for row in rows if row["form"].startswith(names)]
        large = [
            row
            for row in large
            if not row["form"].startswith("attention") or "fp32" not in row["form"]
        ]
        assert len(large) == 3 + 2 + 4 + 2 + 3 + 2 + 3 * 4
        assert all("wgmma.mma_async" in row["matrix_instructions"] for row in large)
        sparse = [row for row in rows if row["form"].startswith("entmax")]
        sparse = [row for row in sparse if "fp32" not in row["form"]]
        assert len(sparse) == 2 * 4
        assert all("wgmma.mma_async" in row["matrix_instructions"] for row in sparse)
