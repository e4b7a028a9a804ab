"""`regraft doctor`."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from regraft.cli.options import output_options
from regraft.cli.show import out_console, print_json, print_table
from regraft.cli.verb import Verb
from regraft.units import human_bytes

_REQUIRED = ("numpy", "ml_dtypes", "onnx", "onnxruntime", "networkx", "scipy", "safetensors")
_OPTIONAL = {
    "torch": "capture from and emission to PyTorch: `pip install regraft[torch]`",
    "triton": "GPU kernels: `pip install regraft[triton]`",
    "transformers": "Hugging Face folders: `pip install regraft[hf]`",
}
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16", "asimddp", "i8mm")


@click.command("doctor", cls=Verb, epilog="Example: regraft doctor --json")
@output_options
def command(as_json: bool, quiet: bool, verbose: int) -> None:
    """Show versions, CPU flags, runtime providers, and what is missing; exit 1 when broken."""
    report = build()
    if as_json:
        print_json(report)
    else:
        console = out_console()
        print_table(console, "machine", ("", "value:"), list(report["machine"].items()))
        rows = [(n, v or "missing") for n, v in report["packages"].items()]
        print_table(console, "packages", ("package", "version:"), rows)
        console.print(f"providers: {', '.join(report['providers']) or 'none'}")
        for problem in report["problems"]:
            console.print(f"problem: {problem}")
        for note in report["notes"]:
            console.print(f"note: {note}")
    if report["problems"]:
        click.get_current_context().exit(1)


def build() -> dict[str, Any]:
    """Returns the report as data."""
    from regraft import __version__

    packages = {"regraft": __version__, **{name: _version(name) for name in _REQUIRED}}
    problems = [f"package `{name}` is missing" for name in _REQUIRED if packages[name] is None]
    notes = []
    for name, what in _OPTIONAL.items():
        packages[name] = _version(name)
        if packages[name] is None:
            notes.append(f"`{name}` is absent; it is needed for {what}")
    providers: list[str] = []
    if packages["onnxruntime"] is not None:
        import onnxruntime

        providers = list(onnxruntime.get_available_providers())
    import psutil

    machine = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "flags": ", ".join(flag for flag in _FLAGS if flag in _cpu_flags()) or "none known",
        "memory": human_bytes(psutil.virtual_memory().total),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    return {
        "machine": machine, "packages": packages, "providers": providers, "problems": problems,
        "notes": notes,
    }  # fmt: skip


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    return set((_cpuinfo("flags") or _cpuinfo("Features")).split())
