"""Text in LaTeX documents."""

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def escape_latex(text: str) -> str:
    """
    Escape the characters that are commands in LaTeX.

    Args:
        text (`str`): plain text, such as a name.

    Returns:
        `str`: LaTeX that prints the text.
    """
    return "".join(_ESCAPES.get(character, character) for character in text)


__all__ = ["escape_latex"]
