"""The typed IR: values, nodes, graphs, types, symbolic dims, weights, text form, evaluator."""

if __name__ != "regraft.ir":
    raise ImportError(
        f"`{__name__}` was imported as a top-level module\n"
        "hint: import it as `regraft.ir`; `src/regraft/ir` is a link to this folder"
    )
