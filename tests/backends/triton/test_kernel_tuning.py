"""`tune --target triton`: the search, by a timer that knows the answer."""

import json

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from triton.runtime.errors import OutOfResources

from regraft import kernel_tuning, tuned_calls
from regraft.backends.triton.kernel_source import KernelSource
from regraft.backends.triton.kernels import configs
from regraft.backends.triton.kernels.softmax import softmax
from regraft.ir.errors import UnsupportedError, UsageError
from tests.backends.triton.harness import interpreted

BEST = {"warps": 8, "rows": 4}


def timer(kernel, config, call):
    """Fastest at `BEST`; a quarter of the default's rows does not fit."""
    # launches take what is tried
    assert dict(configs.config_for(kernel, torch.empty(1), 1)) == dict(config)
    if config["rows"] == 1:
        raise OutOfResources(2, 1, "shared memory")
    return 1.0 + sum(abs(config[key] - best) for key, best in BEST.items())


@pytest.fixture
def tuning(monkeypatch):
    monkeypatch.setattr(tuned_calls, "ELEMENTS", 1 << 14)
    return kernel_tuning.tune_kernels(["softmax"], device="GPU of a test", timer=timer)


def test_the_fastest_configuration_is_found_per_dtype_and_bucket(tuning):
    dtypes = tuning.table["softmax"]["GPU of a test"]
    assert set(dtypes) == {"bfloat16", "float16", "float32"}
    default = configs.read_table()["softmax"]["default"]["any"]
    for buckets in dtypes.values():
        assert [b["up_to"] for b in buckets] == [b["up_to"] for b in default]
        tuned = [b for b, usual in zip(buckets, default, strict=True) if usual["rows"] > 1]
        assert all({key: b[key] for key in BEST} == BEST for b in tuned), tuned
    assert all(gain >= 1 for *_, gain in tuning.gains)
    assert any("shared memory" in failure for failure in tuning.failures)


def test_the_table_of_the_package_is_as_before(tuning):
    assert set(configs.read_table()["softmax"]) == {"default"}


@pytest.mark.parametrize(
    ("device", "architecture", "entry"),
    [("A100", "sm_80", "sm_80"), ("L4", "sm_89", "sm_80"), ("5090", "sm_120", "sm_80"),
     ("H200", "sm_90", "default"), ("B200", "sm_100", "default"), ("MI300X", "gfx942", "hip"),
     ("MI355X", "gfx950", "gfx950"), ("tuned", "sm_89", "tuned"), ("cpu", "", "default")],
)  # fmt: skip
def test_gpus_take_the_entry_of_their_name_else_of_their_family(device, architecture, entry):
    names = ("default", "sm_80", "hip", "gfx950", "tuned")
    table = {"k": {name: {"any": [{"up_to": 8, "is": name}]} for name in names}}
    found = configs.choose("k", device, "float16", 1, table, architecture=architecture)
    assert found["is"] == entry


@pytest.mark.parametrize(
    ("architecture", "stages"), [("sm_90", 3), ("sm_100", 1), ("sm_103", 1), ("sm_120", 3)]
)
def test_loops_that_carry_a_state_have_one_stage_on_gpus_of_10(monkeypatch, architecture, stages):
    monkeypatch.setattr(configs, "_named", lambda device: ("a GPU", architecture))
    assert configs.carried_stages({"stages": 3}, torch.empty(1)) == stages


def test_a_tuned_table_is_merged_and_packages_hold_it(tuning, tmp_path, monkeypatch):
    path = tmp_path / "tuned.json"
    path.write_text(kernel_tuning.merge_into(path, tuning))
    table = configs.read_table(configs.TABLE_PATH, path)
    found = configs.choose("softmax", "GPU of a test", "float16", 50, table)
    assert found["warps"] == BEST["warps"]
    assert configs.choose("softmax", "another", "float16", 50, table)["warps"] == 4
    other = kernel_tuning.KernelTuning("B", {"softmax": {"B": {"float32": []}}}, (), ())
    assert set(json.loads(kernel_tuning.merge_into(path, other))["softmax"]) == {
        "GPU of a test", "B",
    }  # fmt: skip
    monkeypatch.setattr(configs, "read_table", lambda: table)
    source = KernelSource()
    source.add(softmax)
    assert '"GPU of a test": {' in source.text([""])


def test_what_was_tuned_of_an_older_kernel_is_left_out(tmp_path):
    """Its launches would miss options that the kernel has since."""
    path = tmp_path / "tuned.json"
    usual = configs.read_table()["cross_entropy"]["default"]["any"]
    older = [{key: value for key, value in each.items() if key != "group"} for each in usual]
    found = {"older": {"bfloat16": older}, "newer": {"bfloat16": usual}}
    path.write_text(json.dumps({"cross_entropy": found, "no_kernel": found}))
    table = configs.read_table(tuned=path)
    assert table["cross_entropy"].keys() - {"default", "sm_80", "hip"} == {"newer"}
    assert "no_kernel" not in table


@pytest.mark.parametrize("kernel", tuned_calls.CALLS)
def test_every_kernel_has_a_call(kernel, monkeypatch):
    monkeypatch.setattr(tuned_calls, "HEADS", 2)
    for name in ("WIDTH", "TOKENS", "WORDS"):
        monkeypatch.setattr(tuned_calls, name, 32)
    monkeypatch.setattr(tuned_calls, "ELEMENTS", 1 << 10)
    with interpreted():
        tuned_calls.CALLS[kernel](32, torch.float32)


def test_without_a_gpu_it_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UnsupportedError, match="PyTorch finds none"):
        kernel_tuning.tune_kernels()
    with pytest.raises(UsageError, match="unknown kernel `softmix`"):
        kernel_tuning.check_kernels(["softmix"])
