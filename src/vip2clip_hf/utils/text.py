"""Text that can always be printed and written: file names are not always valid text."""

import re


# On Linux and macOS, a byte of a file name that is not UTF-8 is one of these, see PEP 383.
_BYTE = re.compile(r"[\udc80-\udcff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
# Control characters, line and paragraph separators, and marks that change the direction of text.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_NAMED = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def encodable(text: str) -> str:
    """
    Replace what UTF-8 cannot encode by backslash escapes.

    Args:
        text (`str`): text, for example with file names.

    Returns:
        `str`: the text. A byte of a file name that is not UTF-8 is written as `\\xff`, another surrogate as `\\ud800`.
    """
    text = _BYTE.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", text)
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def is_utf8(text: str) -> bool:
    """
    Whether UTF-8 can encode a text.

    Args:
        text (`str`): text, such as a path.

    Returns:
        `bool`: False if a file name in it is not valid UTF-8.
    """
    return _SURROGATE.search(text) is None


def shown(name: str) -> str:
    """
    Write a name in one line of text, for a terminal or a table.

    Args:
        name (`str`): name of a file, category or dataset.

    Returns:
        `str`: the name; line breaks, other control characters and what UTF-8 cannot encode are backslash escapes.
    """
    return _CONTROL.sub(lambda found: _NAMED.get(found[0]) or _escaped(found[0]), encodable(name))


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """
    Write a number with its noun.

    Args:
        count (`int`): the number.
        singular (`str`): the noun for 1.
        plural (`str`, *optional*): the noun for other numbers. By default, the singular with an s.

    Returns:
        `str`: such as `"1 photo"` or `"1,200 photos"`.
    """
    return f"{count:,} {singular if count == 1 else plural or f'{singular}s'}"


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


__all__ = ["counted", "encodable", "is_utf8", "shown"]
