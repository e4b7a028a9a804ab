"""Launch configurations from a table by (kernel, device, dtype, size of the row)."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

import torch

from regraft.backends.machine_tables import user_table

TABLE_PATH = Path(__file__).parent / "configs.json"
DEFAULT_DEVICE = "default"
HIP_DEVICE = "hip"
REGISTERS_DEVICE = "sm_80"
ANY_DTYPE = "any"

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

Config = Mapping[str, int]
Table = Mapping[str, Mapping[str, Mapping[str, list[Config]]]]


@functools.cache
def read_table(path: Path = TABLE_PATH, tuned: Path | None = None) -> Table:
    """Returns kernel -> device -> dtype -> buckets, each bucket with its greatest size `up_to`.

    Args:
        path: The table with the defaults.
        tuned: What `tune` found on this machine; default: where it writes. What was found of a
            kernel that has other options by now is left out.
    """
    table: dict[str, dict[str, dict[str, list[Config]]]] = json.loads(
        path.read_text(encoding="utf-8")
    )
    found = user_table("triton") if tuned is None else tuned
    if found.is_file():
        for kernel, devices in json.loads(found.read_text(encoding="utf-8")).items():
            if kernel not in table:
                continue
            usual = [set(bucket) for bucket in table[kernel][DEFAULT_DEVICE][ANY_DTYPE]]
            options = set.intersection(*usual)
            for device, dtypes in devices.items():
                for dtype, buckets in dtypes.items():
                    if all(options <= bucket.keys() for bucket in buckets):
                        table[kernel].setdefault(device, {})[dtype] = buckets
    for kernel, devices in table.items():
        if not devices.get(DEFAULT_DEVICE, {}).get(ANY_DTYPE):
            raise ValueError(
                f"{path}: kernel `{kernel}` has no `{DEFAULT_DEVICE}` entry for `{ANY_DTYPE}`\n"
                "hint: devices that are not listed need one"
            )
        for device, dtypes in devices.items():
            for dtype, buckets in dtypes.items():
                sizes = [bucket["up_to"] for bucket in buckets]
                if sizes != sorted(sizes):
                    raise ValueError(
                        f"{path}: buckets of `{kernel}`, `{device}`, `{dtype}` are out of order: "
                        f"{sizes}\nhint: sort them by `up_to`"
                    )
    return table


def families(architecture: str) -> tuple[str, ...]:
    """Returns the entries that GPUs of an architecture take before the default, closest first.

    GPUs of NVIDIA whose matrix instructions read registers (7.x, 8.x, 12.x) take those of 8.0.

    Args:
        architecture: `sm_90`, `gfx942` and the like.
    """
    if architecture.startswith("gfx"):
        return architecture, HIP_DEVICE
    reads_registers = architecture.startswith(("sm_7", "sm_8", "sm_12"))
    return (architecture, REGISTERS_DEVICE) if reads_registers else (architecture,)


def buckets_of(
    kernel: str, device: str, dtype: str, table: Table | None = None, *, architecture: str = ""
) -> list[Config]:
    """Returns the configurations of a kernel on a device, by the greatest size.

    An unlisted device takes the entry of its family, else the default one; an unlisted dtype the
    entry `any`.

    Args:
        kernel: A key of the table.
        device: Name of the device as `torch.cuda.get_device_name` gives it.
        dtype: Name of the dtype without `torch.`.
        table: Instead of the one that ships.
        architecture: Of the device, as `families` takes it.
    """
    devices = (read_table() if table is None else table)[kernel]
    usual = devices[DEFAULT_DEVICE]
    names = (device, *families(architecture))
    dtypes = next((devices[name] for name in names if name in devices), usual)
    return dtypes.get(dtype) or dtypes.get(ANY_DTYPE) or usual.get(dtype) or usual[ANY_DTYPE]


def choose(
    kernel: str,
    device: str,
    dtype: str,
    size: int,
    table: Table | None = None,
    *,
    architecture: str = "",
) -> Config:
    """Returns the configuration of the smallest bucket that holds `size`.

    A size above every bucket takes the last one, whose kernel then loops over blocks.

    Args:
        kernel: A key of the table.
        device: As `buckets_of` takes it.
        dtype: As `buckets_of` takes it.
        size: Elements of a row, or whatever the kernel buckets by.
        table: Instead of the one that ships.
        architecture: As `buckets_of` takes it.
    """
    buckets = buckets_of(kernel, device, dtype, table, architecture=architecture)
    for bucket in buckets:
        if size <= bucket["up_to"]:
            return bucket
    return buckets[-1]


@functools.cache
def _named(device: torch.device) -> tuple[str, str]:
    """Returns the name of a device and its architecture."""
    if device.type != "cuda":
        return device.type, ""
    about = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return about.name, about.gcnArchName.partition(":")[0]
    return about.name, f"sm_{about.major}{about.minor}"


def config_for(kernel: str, x: torch.Tensor, size: int) -> Config:
    """Returns the configuration for a launch on the device and dtype of `x`.

    Raises:
        TypeError: The dtype is not one that kernels take: they compute in f32.
    """
    if x.dtype not in DTYPES:
        raise TypeError(
            f"kernel `{kernel}` takes f32, f16 and bf16, x is {x.dtype}\n"
            "hint: use PyTorch's own operator for other dtypes"
        )
    dtype = str(x.dtype).removeprefix("torch.")
    device, architecture = _named(x.device)
    return choose(kernel, device, dtype, size, architecture=architecture)


def tile_options(config: Config) -> dict[str, int]:
    """Returns the tile of a product, its warps and its stages, by the names of a launch."""
    return {
        "BLOCK_M": config["m"], "BLOCK_N": config["n"], "BLOCK_K": config["k"],
        "num_warps": config["warps"], "num_stages": config["stages"],
    }  # fmt: skip


def carried_stages(config: Config, x: torch.Tensor) -> int:
    """Returns the stages of a loop whose products share a state that it carries.

    One on GPUs of 10.x, whatever was tuned: with more, Triton overlaps such products there, and
    the later one reads the state of another iteration (triton #10821, in 3.6 to 3.8; #10993, open).
    """
    _, architecture = _named(x.device)
    return 1 if architecture.startswith("sm_10") else config["stages"]


@functools.cache
def num_processors(device: torch.device) -> int:
    """Returns how many multiprocessors there are; 2 where kernels are interpreted."""
    if device.type != "cuda":
        return 2
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count
