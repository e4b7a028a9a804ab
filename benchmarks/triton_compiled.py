"""Kernels compiled for GPUs that are not there, and what of it misses what they should become.

Twice: in the forms of `kernels/forms.py`, one per path through the code, and in the launches that
the default configurations lead to. What was compiled is kept in `.cache/bench/triton/compiled` by
Triton, by the source of the kernel.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.kept_figures import Figures, kept
from benchmarks.measure import CACHE, ROOT, Measurement, Row, Settings, at_least, at_most, shown
from benchmarks.triton_packages import sources

FORMS, LAUNCHES = "regraft.backends.triton.ahead_of_time", "benchmarks.triton_launches"
GENERATED = "tests.backends.triton.generated_ahead_of_time"
"""Modules that compile."""
TARGETS = ("sm_80", "sm_90", "gfx942")
NARROW: Mapping[str, int] = {"norm-weight-gradient": 6, "decode-merge": 20}
NARROW_OF_A_ROW = ("logit-loss", 6)
"""Forms that begin so read a label, its logit and a factor, and write a loss and two sums, of
every row.
"""
"""Forms with accesses below 16 bytes by their nature: shares of a gradient that programs write
once; maxima and sums of spans. Elsewhere a statistic per row is narrow, and less than half is.
"""
STORED_SHARES: Mapping[str, int] = {"normal-256": 2, "planes": 5}
"""Chains of 256 columns: a thread stores 8 bytes of a program's share of a sum over rows, once.
Planes: each of a thread's 8 elements reads its channel, against 3 wide accesses.
"""
FEW_ROWS = re.compile(r"few-rows|^decode|^(attention|entmax).*-fp32$|^filtered-product-words-fp32$")
"""Forms whose tiles have fewer than the 64 rows that wgmma multiplies: few rows by their nature;
f32, whose tiles of 64 rows do not fit into registers.
"""
SHARED_BYTES: Mapping[str, int] = {"sm_80": 99 << 10, "sm_90": 227 << 10, "gfx942": 64 << 10}
"""Of a program. GPUs of 8.0 have 163 KB; those of 8.6, 8.9 and 12.0, which take the configurations
of 8.0, have 99 KB.
"""
_TILE_ROWS = ("BLOCK_M", "BLOCK_I", "BLOCK_G")
_WGMMA = "wgmma.mma_async"
_VERSION = 1
_KERNEL = re.compile(r"^@triton\.jit[^\n]*\ndef (\w+_kernel)\(", re.MULTILINE)

Compiled = Mapping[str, Any]


def compiled(module: str, target: str, settings: Settings) -> Sequence[Compiled]:
    """Returns what `printed` does, kept for as long as the sources are these."""

    def make() -> Figures:
        cache = os.environ.get("TRITON_CACHE_DIR") or str(CACHE / "triton" / "compiled")
        return {"rows": printed(module, target, settings.python, cache)}

    version = importlib.metadata.version("triton")
    key = f"{module.rpartition('.')[2]}-{target}-{version}-{sources()}"
    rows: Sequence[Compiled] = kept("triton", key, _VERSION, settings, make)["rows"]
    return rows


def printed(
    module: str, target: str, python: str, cache: str, *options: str
) -> list[dict[str, Any]]:
    """Returns the rows that a module prints about a target.

    Args:
        module: Compiles, in a process of its own.
        target: One of `TARGETS`.
        python: Runs it.
        cache: Folder in which Triton keeps what it compiled.
        options: Of the module.

    Raises:
        RuntimeError: It failed.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [python, "-m", module, target, *options], capture_output=True, text=True, check=False,
        cwd=ROOT, env={**environment, "TRITON_CACHE_DIR": cache},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"python -m {module} {target}\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def spilled(rows: Sequence[Compiled]) -> list[str]:
    """Returns what needs more registers than there are."""
    return [row["form"] for row in rows if row["spilled"]]


def crowded(rows: Sequence[Compiled], target: str) -> list[str]:
    """Returns what needs more shared memory than a program may have."""
    return [row["form"] for row in rows if row["shared_bytes"] > SHARED_BYTES[target]]


def without_products(rows: Sequence[Compiled], target: str) -> list[str]:
    """Returns matmul-like forms without matrix instructions; on sm_90 those without wgmma.

    Launches without products, and those whose products are of f32 in full, have none.
    """
    products = [row for row in rows if row["bound"] == "matmul" and not row.get("is_exact")]
    if target != "sm_90":
        return [row["form"] for row in products if not row["matrix_instructions"]]
    return [
        row["form"]
        for row in products
        if _WGMMA not in row["matrix_instructions"] and not has_few_rows(row)
    ]


def has_few_rows(row: Compiled) -> bool:
    """Whether a tile has fewer rows than wgmma multiplies."""
    if "constants" not in row:
        return FEW_ROWS.search(row["form"]) is not None
    return any(row["constants"].get(name, 64) < 64 for name in _TILE_ROWS)


def narrow(rows: Sequence[Compiled]) -> list[str]:
    """Returns memory-bound forms without accesses of 16 bytes, or with more narrow ones."""
    return [
        row["form"]
        for row in rows
        if row["bound"] == "memory" and row["narrow_accesses"] > _most_narrow(row)
    ]


def _most_narrow(row: Compiled) -> int:
    start, most = NARROW_OF_A_ROW
    if row["form"].startswith(start):
        return most
    return NARROW.get(row["form"], row["wide_accesses"] - 1)


def kernels() -> list[str]:
    """Returns the names of all kernels."""
    folder = ROOT / "backends" / "triton" / "kernels"
    return sorted(
        name for path in folder.glob("*.py") for name in _KERNEL.findall(path.read_text())
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _none(name: str, found: Sequence[str]) -> Row:
    return at_most(name, float(len(found)), 0.0, "of them", _listed(found))


def _forms(target: str, settings: Settings) -> Iterator[Row]:
    rows = compiled(FORMS, target, settings)
    have = {row["kernel"] for row in rows}
    yield at_least(f"{target}: forms compiled", float(len(rows)), float(len(kernels())), "forms")
    yield _none(f"{target}: kernels without a form", [k for k in kernels() if k not in have])
    yield from _judged(target, rows)
    if target != "gfx942":
        yield _none(f"{target}: memory-bound, most accesses below 16 bytes", narrow(rows))


def _launches(target: str, settings: Settings) -> Iterator[Row]:
    rows = compiled(LAUNCHES, target, settings)
    have = {row["kernel"] for row in rows}
    yield shown(f"{target}: launches of default configurations", float(len(rows)), "launches",
                f"{len(have)} kernels")  # fmt: skip
    yield from _judged(f"{target}, launches", rows)
    room = f"{SHARED_BYTES[target] >> 10} KB of shared memory"
    yield _none(f"{target}, launches: beyond {room}", crowded(rows, target))


def _generated(target: str, settings: Settings) -> Iterator[Row]:
    rows = compiled(GENERATED, target, settings)
    names = [f"{row['kernel']} of {row['chain']}" for row in rows]
    yield shown(f"{target}: kernels generated for chains", float(len(rows)), "launches")
    spills = [name for name, row in zip(names, rows, strict=True) if row["spilled"]]
    yield _none(f"{target}, generated: with registers spilled", spills)
    if target != "gfx942":
        few = [
            name
            for name, row in zip(names, rows, strict=True)
            if row["wide"] + STORED_SHARES.get(row["chain"], 0) < row["narrow"]
        ]
        yield _none(f"{target}, generated: most accesses below 16 bytes", few)


def _judged(label: str, rows: Sequence[Compiled]) -> Iterator[Row]:
    target = rows[0]["target"]
    yield _none(f"{label}: with registers spilled", spilled(rows))
    what = "wgmma, of those whose tiles have 64 rows" if target == "sm_90" else "matrix products"
    yield _none(f"{label}: matmul-like without {what}", without_products(rows, target))
    if target == "sm_90":
        products = [row for row in rows if row["bound"] == "matmul"]
        has = sum(_WGMMA in row["matrix_instructions"] for row in products)
        yield shown(f"{label}: matmul-like with wgmma", float(has), f"of {len(products)}")


_Run = Callable[[str, Settings], Iterator[Row]]
_KINDS: Mapping[str, tuple[_Run, str]] = {
    "forms": (_forms, "every path through every kernel, compiled ahead of time"),
    "generated": (_generated, "kernels generated for chains, compiled ahead of time"),
    "launches": (_launches, "what default configurations launch, compiled ahead of time"),
}

MEASUREMENTS = tuple(
    Measurement(f"{kind} {target}", f"{about} for {target}", functools.partial(run, target))
    for kind, (run, about) in _KINDS.items()
    for target in TARGETS
)
