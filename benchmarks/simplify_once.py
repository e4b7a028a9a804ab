"""One tool simplifies one model in this process: `simplify_once TOOL IN.onnx OUT.onnx`.

Runs under the interpreter that has the tool (regraft's own, or that of the peers), so it imports
the standard library and the tool alone. Prints one JSON document: seconds of import, load, simplify
and save, nodes left in the main graph, and the peak of resident memory.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Clock = Callable[[str], None]
Tool = Callable[[str, str, Clock], None]

FUSING = "canonicalize,fold-norms,canonicalize,fuse,canonicalize"


def _regraft(source: str, out: str, mark: Clock) -> None:
    import regraft

    mark("import")
    module = regraft.load(source)
    mark("load")
    regraft.apply(module, "canonicalize")
    mark("simplify")
    regraft.save(module, out, target="onnx")
    mark("save")


def _converts(target: str, opset: int | None = None) -> "Tool":
    """Returns all that a conversion does but its check."""

    def convert(source: str, out: str, mark: Clock) -> None:
        import regraft
        from regraft.passes.legalize import Legalize

        mark("import")
        module = regraft.load(source)
        mark("load")
        regraft.apply(module, FUSING, check="off")
        regraft.apply(module, [Legalize(target, opset)], check="off")
        mark("simplify")
        regraft.save(module, out, target=target, opset=opset)
        mark("save")

    return convert


def _save_proto(model: Any, out: str, mark: Clock) -> None:
    import onnx

    external = model.ByteSize() > 2**31 - 1 or any(t.data_location for t in model.graph.initializer)
    onnx.save_model(model, out, save_as_external_data=external, location=Path(out).name + ".data")
    mark("save")


def _onnxsim(source: str, out: str, mark: Clock) -> None:
    import onnx
    import onnxsim

    mark("import")
    model = onnx.load(source)
    mark("load")
    model, _ = onnxsim.simplify(model)
    mark("simplify")
    _save_proto(model, out, mark)


def _onnxslim(source: str, out: str, mark: Clock) -> None:
    import onnx
    import onnxslim

    mark("import")
    model = onnx.load(source)
    mark("load")
    model = onnxslim.slim(model)
    mark("simplify")
    _save_proto(model, out, mark)


def _onnxscript(source: str, out: str, mark: Clock) -> None:
    import onnx_ir
    import onnxscript.optimizer

    mark("import")
    model = onnx_ir.load(source)
    mark("load")
    onnxscript.optimizer.optimize_ir(model)
    mark("simplify")
    external = Path(out).name + ".data" if os.path.exists(source + ".data") else None
    onnx_ir.save(model, out, external_data=external)
    mark("save")


def _ort(source: str, out: str, mark: Clock) -> None:
    import onnxruntime

    mark("import")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = out
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    mark("simplify")  # loads, optimizes and saves in one call


def _ort_transformers(source: str, out: str, mark: Clock) -> None:
    from onnxruntime.transformers import optimizer

    mark("import")
    kind = "vit" if "ppocr" in Path(source).name else "bert"
    # level 0: the session does the runtime's own optimizations when it loads the result
    model = optimizer.optimize_model(source, kind, opt_level=0)
    mark("simplify")
    fused = {name: n for name, n in model.get_fused_operator_statistics().items() if n}
    if not fused:
        raise SystemExit("the transformer optimizer fuses nothing here")
    model.save_model_to_file(out)
    mark("save")


TOOLS: dict[str, Tool] = {
    "regraft": _regraft,
    "regraft-ort-cpu": _converts("ort-cpu"),
    "regraft-onnx": _converts("onnx"),
    "regraft-onnx-20": _converts("onnx", 20),
    "onnxsim": _onnxsim,
    "onnxslim": _onnxslim,
    "onnxscript": _onnxscript,
    "ort": _ort,
    "ort-transformers": _ort_transformers,
}


def _peak_rss_bytes() -> int:
    # Not ru_maxrss: that one starts at the peak of the launching process.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("`/proc/self/status` has no VmHWM line")


def main() -> None:
    tool, source, out = sys.argv[1:]
    seconds: dict[str, float] = {}
    last = time.perf_counter()

    def mark(stage: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[stage] = now - last
        last = now

    TOOLS[tool](source, out, mark)
    peak = _peak_rss_bytes()
    import onnx

    left = len(onnx.load(out, load_external_data=False).graph.node)
    print(json.dumps({"seconds": seconds, "nodes": left, "peak_rss_bytes": peak}))


if __name__ == "__main__":
    main()
