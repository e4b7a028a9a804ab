"""Passes, analyses, contracts, the manager and recipes: everything that rewrites a module."""

if __name__ != "regraft.passes":
    raise ImportError(
        f"`{__name__}` was imported as a top-level module\n"
        "hint: import it as `regraft.passes`; the folder `passes/` is reached through `src/regraft/passes`"
    )
