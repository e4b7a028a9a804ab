"""Start-up: `--help` and what `import regraft` loads."""

import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks import timing
from benchmarks.measure import ROOT, Measurement, Row, Settings, held, shown

ROUNDS = 50
HELP_BAR_S = 0.25

LOADED = """
import sys
before = set(sys.modules)
{statement}
import json
new = set(sys.modules) - before
top = {{name.partition(".")[0] for name in new}}
print(json.dumps(sorted(top - set(sys.stdlib_module_names))))
"""


def _loaded(settings: Settings, statement: str) -> set[str]:
    """Returns the top-level modules, standard library apart, that a statement loads."""
    code = LOADED.format(statement=statement)
    done = timing.run([settings.python, "-c", code], settings.timeout_s, cwd=ROOT / "benchmarks")
    done.require_success(statement)
    return set(json.loads(done.stdout.splitlines()[-1]))


def _imports(settings: Settings) -> Iterator[Row]:
    loaded = _loaded(settings, "import regraft")
    extra = loaded - {"regraft", "numpy", "_distutils_hack"}
    yield held("import regraft loads numpy at most", not extra, f"loaded: {sorted(loaded)}")
    help_ = (
        "import contextlib, io, regraft.cli\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    sys.argv = ['regraft', '--help']; regraft.cli.main()"
    )
    loaded = _loaded(settings, help_)
    heavy = loaded & {"numpy", "onnx", "onnxruntime", "torch", "scipy", "networkx", "triton"}
    yield held("regraft --help loads no numpy", not heavy, f"loaded: {sorted(loaded)}")


def _help(settings: Settings) -> Iterator[Row]:
    command = [str(Path(settings.python).with_name("regraft")), "--help"]
    bare = [settings.python, "-c", "pass"]
    excess, base = [], []
    for argv in (command, bare):
        timing.run(argv, settings.timeout_s).require_success(" ".join(argv))
    for _ in range(ROUNDS):
        base.append(timing.run(bare, settings.timeout_s).wall_s)
        excess.append(timing.run(command, settings.timeout_s).wall_s - base[-1])
    name = "regraft --help over a bare interpreter"
    spread = f"{min(excess):.3f} to {max(excess):.3f} over {ROUNDS} rounds"
    yield Row(name, timing.median(excess), "s", HELP_BAR_S, note=spread)
    yield shown("bare interpreter", timing.median(base), "s")


MEASUREMENTS = (
    Measurement("imports", "what `import regraft` and `--help` load", _imports),
    Measurement("help", "`regraft --help` against a bare interpreter", _help),
)
