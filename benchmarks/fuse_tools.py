"""bisect, rerun, plugins and the snapshots of the command line: the tests that hold them, run.

A planted bug has to be found with a reproducer of at most ten nodes, a rerun has to give the same
bytes, a plugin of a separate package has to add a pass, an operator and an emitter, and every verb
and flag has to print what was recorded.
"""

from collections.abc import Iterator

from benchmarks import timing
from benchmarks.measure import ROOT, Measurement, Row, Settings, held

TESTS = {
    "bisect finds a planted bug, reproducer of at most 10 nodes": "tests/regraft/test_bisection.py",
    "rerun reproduces model files byte for byte": "tests/regraft/test_rerun.py",
    "a plugin package adds a pass, an operator and an emitter": "tests/regraft/test_plugins.py",
    "every verb and flag prints what was recorded": "tests/cli/test_snapshots.py",
}


def measure(settings: Settings) -> Iterator[Row]:
    """Yields one row per file of tests."""
    for name, path in TESTS.items():
        argv = [settings.python, "-m", "pytest", path, "-q", "-n0", "-p", "no:cacheprovider"]
        done = timing.run(argv, settings.timeout_s, cwd=ROOT)
        last = (done.stdout.strip() or done.stderr.strip() or "no output").splitlines()[-1]
        yield held(name, done.returncode == 0, f"{path}: {last.strip('= ')}")


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("tools", "bisect, rerun, plugins, snapshots of the command line", measure),
)
