"""Backends: consume a module and emit ONNX Runtime graphs, Triton kernels, torch modules."""

if __name__ != "regraft.backends":
    raise ImportError(
        f"`{__name__}` was imported as a top-level module\n"
        "hint: import it as `regraft.backends`; `src/regraft/backends` is a link to this folder"
    )
