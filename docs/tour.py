"""Runs the tour of README.md on a real model and pastes what it prints.

`python -m docs.tour` needs the models of `make models`; the text between the two marks of README.md
is replaced.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import models

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- tour: made by `python -m docs.tour` -->", "<!-- end of the tour -->"
_SHOWN_LINES = 30

CONVERT = """\
Convert it. Every rewrite is checked before and after on generated inputs, then the written model
is compared with the source in ONNX Runtime."""
AGAIN = """\
regraft convert ocr.onnx -o again --recipe out/recipe.yaml --json > report.json && \\
  cmp out/model.onnx again/model.onnx && echo identical"""
TEXT = """\
regraft opt ocr.onnx --passes canonicalize,fold-norms | grep '= conv(' | head -2 | cut -c1-99"""
SIZES = "p2o_DynamicDimension_0=1,x_2=48,p2o_DynamicDimension_1=320"

STEPS = (
    (
        "PP-OCRv4's text recognizer, as its authors ship it: what is in it?",
        f"regraft inspect ocr.onnx --dims {SIZES}",
    ),
    (
        CONVERT,
        "regraft convert ocr.onnx -o out",
    ),
    ("Compare any two models; exit code 3 when they differ.", "regraft compare ocr.onnx out"),
    (
        "The recipe beside the model writes the same bytes again.",
        AGAIN,
    ),
    (
        "Everything is text, too; large weights are named, or lie beside the file with `-o`.",
        TEXT,
    ),
    ("Mistakes are answered.", "regraft convert ocr.onnx -o other --passes canonicalise"),
)


def run(command: str, folder: Path) -> str:
    """Returns what a shell command prints, both streams, without colours."""
    env = {**os.environ, "NO_COLOR": "1", "COLUMNS": "100"}
    env["PYTHONPATH"] = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path)
    # the command of this interpreter, whatever else is installed
    script = f'regraft() {{ {shlex.quote(sys.executable)} -m regraft "$@"; }}; {command}'
    done = subprocess.run(
        script, shell=True, cwd=folder, env=env, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode not in (0, 2):  # 2: the mistake that the tour shows
        raise SystemExit(f"{command}\n{done.stdout}")
    return done.stdout


def tour() -> str:
    """Returns the tour as Markdown."""
    parts = [BEGIN, ""]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(models.find(models.named("ppocr-rec")), folder / "ocr.onnx")
        for about, command in STEPS:
            lines = run(command, folder).rstrip().splitlines()
            if len(lines) > _SHOWN_LINES:
                lines = [*lines[: _SHOWN_LINES - 1], "…"]
            parts += [about, "", "```console", f"$ {command}", *lines, "```", ""]
    return "\n".join([*parts, END])


def main() -> None:
    """Replaces the tour in README.md."""
    text = README.read_text("utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    README.write_text(before + tour() + after, encoding="utf-8")
    print(f"wrote {shlex.quote(str(README))}")


if __name__ == "__main__":
    main()
