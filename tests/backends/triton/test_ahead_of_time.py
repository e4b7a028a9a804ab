"""Kernels compile for GPUs that are not there, and to the instructions they should become."""

import os
import sys

import pytest

pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from benchmarks.triton_compiled import (
    FORMS,
    LAUNCHES,
    TARGETS,
    crowded,
    has_few_rows,
    kernels,
    narrow,
    printed,
    spilled,
    without_products,
)
from regraft.backends.triton import ahead_of_time


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    cache = str(tmp_path)
    return lambda module, target, *options: printed(module, target, sys.executable, cache, *options)


# one form of each kernel; `make full` and `python -m benchmarks.triton` compile all for all targets
IN_CI = "sm_90"


def test_every_kernel_compiles_without_spills(compiled):
    rows = compiled(FORMS, IN_CI, ahead_of_time.ONE_EACH)
    assert sorted(row["kernel"] for row in rows) == kernels()
    assert spilled(rows) == []
    assert without_products(rows, IN_CI) == []
    assert narrow(rows) == []


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_form_of_every_kernel_compiles_without_spills(compiled, target):
    rows = compiled(FORMS, target)
    assert {row["kernel"] for row in rows} == set(kernels())
    assert len({row["form"] for row in rows}) == len(rows)
    assert all(row["binary_bytes"] > 0 for row in rows)
    assert spilled(rows) == []
    assert without_products(rows, target) == []
    assert sum(has_few_rows(row) for row in rows) < len(rows) / 4
    if target != "gfx942":
        assert narrow(rows) == []


def test_numbers_that_pytorchs_compiler_makes_f64_are_cast(compiled):
    rows = compiled("tests.backends.triton.floats_as_f64", IN_CI)
    assert len({row["kernel"] for row in rows}) > 15
    assert [row for row in rows if row["f64"]] == []


def test_no_product_is_transposed_before_another(compiled):
    rows = compiled("tests.backends.triton.turned_products", IN_CI)
    assert sum(row["products"] > 1 for row in rows) > 50
    assert [row["form"] for row in rows if row["turned"]] == ["turned", "sometimes turned"]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_default_configurations_lead_to_launches_without_spills(compiled, target):
    rows = compiled(LAUNCHES, target)
    assert len(rows) > 100
    assert spilled(rows) == []
    assert crowded(rows, target) == []
    assert without_products(rows, target) == []


def test_what_misses_is_named():
    good = {
        "form": "linear-large", "bound": "matmul", "spilled": 0, "wide_accesses": 4,
        "narrow_accesses": 1, "matrix_instructions": {"wgmma.mma_async": 2}, "shared_bytes": 65536,
    }  # fmt: skip
    few = {**good, "form": "linear-few-rows", "matrix_instructions": {"mma": 2}}
    bad = {**good, "form": "linear-other", "spilled": 8, "matrix_instructions": {"mma": 2}}
    memory = {**good, "form": "softmax", "bound": "memory", "matrix_instructions": {}}
    scalar = {**memory, "form": "scalar", "wide_accesses": 0}
    rows = [good, few, bad, memory, scalar]
    assert spilled(rows) == ["linear-other"]
    assert without_products(rows, "sm_90") == ["linear-other"]
    assert without_products(rows, "sm_80") == []
    assert narrow(rows) == ["scalar"]
    large = {**good, "form": "linear-deep", "shared_bytes": 100 << 10}
    assert crowded([good, large], "sm_80") == ["linear-deep"]
    assert crowded([good, large], "sm_90") == []


def test_an_unknown_target_is_refused():
    with pytest.raises(SystemExit, match="unknown target `sm_99`, expected sm_80, sm_90, gfx942"):
        ahead_of_time.main(["sm_90", "sm_99"])
