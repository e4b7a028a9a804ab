"""Side-by-side measurements against named peers: one file per family of claims."""
