"""Text of models on a terminal."""


def printable(text: str) -> str:
    """Returns the text with control characters written out: names in a model may hold any."""
    return "".join(
        char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text
    )
