"""Frontends: produce a module from ONNX, PyTorch and Hugging Face sources."""

if __name__ != "regraft.frontends":
    raise ImportError(
        f"`{__name__}` was imported as a top-level module\n"
        "hint: import it as `regraft.frontends`; `src/regraft/frontends` is a link to this folder"
    )
