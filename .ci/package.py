"""Builds sdist and wheel, installs the wheel in a clean environment, converts one model with it.

sdist -> wheel from the sdist -> contents compared with the working tree -> install in a new
environment -> `regraft convert` away from the checkout -> outputs compared by ONNX Runtime.
"""

import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("ir", "passes", "backends", "frontends")

SAME_OUTPUTS = """
import sys
import numpy as np, onnxruntime as ort
source, result = (ort.InferenceSession(p, providers=["CPUExecutionProvider"]) for p in sys.argv[1:])
for batch, sequence in ((1, 7), (2, 5)):
    x = np.random.default_rng(batch).standard_normal((batch, sequence, 64)).astype(np.float32)
    a, b = source.run(None, {"x": x})[0], result.run(None, {"x": x})[0]
    worst, scale = np.abs(a - b).max(), np.abs(a).max()
    assert scale > 0 and worst <= 1e-5 * scale, f"outputs differ by {worst}, of {scale}"
    print(f"x f32[{batch}, {sequence}, 64]: largest difference {worst:.2e}, of {scale:.2f}")
"""


def run(*argv: object, cwd: Path = ROOT) -> None:
    """Prints and runs a command; raises CalledProcessError when it fails."""
    words = [str(word) for word in argv]
    print("+", *(word if "\n" not in word else "<script>" for word in words), flush=True)
    subprocess.run(words, cwd=cwd, check=True)


def modules_in_tree() -> set[str]:
    """Returns the paths of all Python files of the package, as a wheel names them."""
    own = (ROOT / "src" / "regraft").rglob("*.py")
    found = {path.relative_to(ROOT / "src").as_posix() for path in own}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            found.add(f"regraft/{path.relative_to(ROOT).as_posix()}")
    return found


def problems(names: Iterable[str]) -> list[str]:
    """Returns what is wrong with the file names of a wheel."""
    names = set(names)
    wrong = [
        f"`{top}` is a top-level name; only `regraft` may be"
        for top in sorted({name.partition("/")[0] for name in names})
        if top != "regraft" and not top.endswith(".dist-info")
    ]
    modules = {name for name in names if name.endswith(".py")}
    tree = modules_in_tree()
    wrong += [f"`{name}` is missing" for name in sorted(tree - modules)]
    wrong += [f"`{name}` is not in the working tree" for name in sorted(modules - tree)]
    if "regraft/py.typed" not in names:
        wrong.append("`regraft/py.typed` is missing")
    return wrong


def main() -> int:
    """Runs all steps and returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="regraft-package-") as folder:
        work = Path(folder)
        # Without --sdist or --wheel, the wheel is built from the sdist.
        run(sys.executable, "-m", "build", "--outdir", work / "dist", ROOT)
        (wheel,) = (work / "dist").glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
        if wrong := problems(names):
            print(f"error: {wheel.name}", *wrong, sep="\n  ")
            return 1
        print(f"{wheel.name}: {len(names)} files, all modules, nothing beside `regraft`")

        venv.create(work / "venv", with_pip=True)
        python = work / "venv" / "bin" / "python"
        constraints = ROOT / "constraints.txt"
        quiet = ("--quiet", "--disable-pip-version-check")
        run(python, "-m", "pip", "install", *quiet, "-c", constraints, wheel)
        source = work / "block.onnx"
        run(sys.executable, "-m", "benchmarks.blocks", source, "--blocks", "2")
        regraft = work / "venv" / "bin" / "regraft"
        run(regraft, "--version", cwd=work)
        run(regraft, "convert", source, "-o", work / "out", cwd=work)
        run(python, "-c", SAME_OUTPUTS, source, work / "out" / "model.onnx", cwd=work)
    print("package: passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
