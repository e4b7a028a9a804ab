"""The launcher of binaries, with a driver that notes what it is asked for."""

import ctypes
import json
import types

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from regraft.backends.triton import launcher
from regraft.backends.triton.launcher import Binaries, DriverApi, packed

ROW = {
    "kernel": "scale",
    "target": "sm_90",
    "file": "sm_90/scale.cubin",
    "symbol": "scale_entry",
    "constants": {"BLOCK": 64, "stride": 1},
    "divisible": ["x_ptr", "N"],
    "arguments": [["x_ptr", "*fp16"], ["N", "i32"], ["num_rows", "i32"], ["eps", "fp32"]],
    "scratch_pointers": 2,
    "shared": 65536,
    "warps": 4,
    "stages": 3,
    "threads_per_warp": 32,
}


class Kernel:
    __name__ = "scale"
    arg_names = ("x_ptr", "stride", "N", "num_rows", "eps", "BLOCK")


class Noted:
    """A driver, and what Triton would compile."""

    def __init__(self):
        self.loaded, self.launched, self.compiled = [], [], []

    def load(self, binary, name, shared):
        self.loaded.append((binary, name, shared))
        return "function"

    def launch(self, function, grid, threads, shared, values):
        self.launched.append((function, grid, threads, shared, values))

    def __call__(self, kernel):
        return {(3,): lambda *args, **named: self.compiled.append((args, named))}


@pytest.fixture
def binaries(tmp_path):
    (tmp_path / "sm_90").mkdir()
    (tmp_path / "sm_90" / "scale.cubin").write_bytes(b"code")
    (tmp_path / "manifest.json").write_text(json.dumps({"triton": "3.8.0", "binaries": [ROW]}))
    noted = Noted()
    return noted, Binaries(noted, "sm_90", noted, tmp_path)


def launch(found, x, *, stride=1, N=32, eps=0.5, block=64, **more):
    found(Kernel())[(3,)](x, stride, N, 7, eps, BLOCK=block, num_warps=4, **more)


def aligned(dtype=torch.float16):
    x = torch.zeros(64, dtype=dtype)
    return x if x.data_ptr() % 16 == 0 else x[8 - x.data_ptr() % 16 // 2 :]


def test_a_launch_that_fits_takes_the_binary_and_loads_it_once(binaries):
    noted, found = binaries
    launch(found, aligned())
    launch(found, aligned())
    assert noted.loaded == [(b"code", "scale_entry", 65536)]
    assert [call[:4] for call in noted.launched] == [("function", (3, 1, 1), 128, 65536)] * 2
    assert (found.missed, noted.compiled) == (0, [])


@pytest.mark.parametrize(
    "other", [{"stride": 2}, {"N": 33}, {"block": 128}, {"num_stages": 4}, {"N": 2**31}], ids=str
)
def test_a_launch_that_does_not_fit_is_compiled_by_triton(binaries, other):
    noted, found = binaries
    launch(found, aligned(), **other)
    assert (noted.launched, found.missed, len(noted.compiled)) == ([], 1, 1)


def test_other_dtypes_and_addresses_do_not_fit(binaries):
    noted, found = binaries
    launch(found, aligned(torch.float32))
    launch(found, aligned()[1:])
    assert (noted.launched, found.missed) == ([], 2)


def test_arguments_are_packed_as_c_has_them():
    x = aligned()
    given = {"x_ptr": x, "N": 32, "num_rows": 7, "eps": 0.5}
    holders, pointers = packed(ROW, given)
    assert [holder.value for holder in holders] == [x.data_ptr(), 32, 7, 0.5, None, None]
    assert len(pointers) == 6
    assert ctypes.cast(pointers[1], ctypes.POINTER(ctypes.c_int32)).contents.value == 32


class Library:
    """What a driver's library is to ctypes: it notes calls, and has a context or has none."""

    def __init__(self, *, has_context):
        self.calls, self.has_context = [], has_context

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append((name, arguments))
            if name == "cuCtxGetCurrent" and self.has_context:
                arguments[0]._obj.value = 1
            return 0

        return call


def driver(library, *, is_hip):
    made = DriverApi.__new__(DriverApi)
    made._library, made._is_hip, made._prefix = library, is_hip, "hip" if is_hip else "cu"
    return made


def test_a_thread_without_a_context_gets_that_of_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    library = Library(has_context=False)
    driver(library, is_hip=False).load(b"code", "scale_entry", 65536)
    assert [name for name, _ in library.calls] == [
        "cuCtxGetCurrent", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuModuleLoadData",
        "cuModuleGetFunction", "cuFuncSetAttribute",
    ]  # fmt: skip
    assert library.calls[1][1][1] == 3
    assert library.calls[-1][1][1:] == (8, 65536)


@pytest.mark.parametrize(
    ("is_hip", "shared", "last"),
    [(False, 65536, "FuncSetAttribute"), (False, 1024, "ModuleGetFunction"),
     (True, 65536, "ModuleGetFunction")],
)  # fmt: skip
def test_more_shared_memory_is_asked_for_where_a_driver_needs_it(is_hip, shared, last):
    library = Library(has_context=True)
    driver(library, is_hip=is_hip).load(b"code", "scale_entry", shared)
    names = [name for name, _ in library.calls]
    assert names[-1] == ("hip" if is_hip else "cu") + last
    assert "cuCtxSetCurrent" not in names


def test_every_device_loads_a_binary_of_its_own(binaries, monkeypatch):
    noted, found = binaries
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    for device in (0, 1, 0):
        monkeypatch.setattr(torch.cuda, "current_device", lambda device=device: device)
        launch(found, aligned())
    assert len(noted.loaded) == 2


def test_binaries_want_a_gpu_and_one_that_they_are_for(tmp_path, monkeypatch):
    kernels = types.SimpleNamespace(wrap_triton=None)
    (tmp_path / "manifest.json").write_text(json.dumps({"binaries": [ROW]}))
    monkeypatch.setattr(Binaries.__init__, "__defaults__", (tmp_path,))
    monkeypatch.setattr(launcher, "DriverApi", Noted)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="PyTorch finds none"):
        launcher.use(kernels)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(launcher, "current_target", lambda: "sm_80")
    with pytest.raises(RuntimeError, match=r"no binary is for sm_80.*\n.*--aot sm_80"):
        launcher.use(kernels)
    assert kernels.wrap_triton is None
    monkeypatch.setattr(launcher, "current_target", lambda: "sm_90")
    assert launcher.use(kernels) is kernels.wrap_triton
