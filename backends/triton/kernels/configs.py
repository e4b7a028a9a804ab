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
ANY_DTYPE = "any"

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

Config = Mapping[str, int]
Table = Mapping[str, Mapping[str, Mapping[str, list[Config]]]]


@functools.cache
def read_table(path: Path = TABLE_PATH, tuned: Path | None = None) -> Table:
    """Returns kernel -> device -> dtype -> buckets, each bucket with its greatest size `up_to`.

    Args:
        path: The table with the defaults.
        tuned: What `tune` found on this machine; default: where it writes.
    """
    table: dict[str, dict[str, dict[str, list[Config]]]] = json.loads(
        path.read_text(encoding="utf-8")
    )
    found = user_table("triton") if tuned is None else tuned
    if found.is_file():
        for kernel, devices in json.loads(found.read_text(encoding="utf-8")).items():
            for device, dtypes in devices.items():
                table.get(kernel, {}).setdefault(device, {}).update(dtypes)
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


def choose(
    kernel: str,
    device: str,
    dtype: str,
    size: int,
    table: Table | None = None,
    *,
    is_hip: bool = False,
) -> Config:
    """Returns the configuration of the smallest bucket that holds `size`.

    An unlisted device takes the default one, an unlisted dtype the entry `any`; a size above
    every bucket takes the last one, whose kernel then loops over blocks.

    Args:
        kernel: A key of the table.
        device: Name of the device as `torch.cuda.get_device_name` gives it.
        dtype: Name of the dtype without `torch.`.
        size: Elements of a row, or whatever the kernel buckets by.
        table: Instead of the one that ships.
        is_hip: Whether the device is one of AMD: the kernel's entry `hip` is then its default,
            where it has one.
    """
    devices = (read_table() if table is None else table)[kernel]
    usual = devices[DEFAULT_DEVICE]
    dtypes = devices.get(device) or (devices.get(HIP_DEVICE) if is_hip else None) or usual
    buckets = dtypes.get(dtype) or dtypes.get(ANY_DTYPE) or usual[ANY_DTYPE]
    for bucket in buckets:
        if size <= bucket["up_to"]:
            return bucket
    return buckets[-1]


@functools.cache
def _device_name(device: torch.device) -> str:
    name: str = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return name


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
    is_hip = torch.version.hip is not None
    return choose(kernel, _device_name(x.device), dtype, size, is_hip=is_hip)


def tile_options(config: Config) -> dict[str, int]:
    """Returns the tile of a product, its warps and its stages, by the names of a launch."""
    return {
        "BLOCK_M": config["m"], "BLOCK_N": config["n"], "BLOCK_K": config["k"],
        "num_warps": config["warps"], "num_stages": config["stages"],
    }  # fmt: skip


@functools.cache
def num_processors(device: torch.device) -> int:
    """Returns how many multiprocessors there are; 2 where kernels are interpreted."""
    if device.type != "cuda":
        return 2
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count
