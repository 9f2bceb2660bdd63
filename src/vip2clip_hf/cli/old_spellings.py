"""Old spellings of options: they still work, with a note."""

import os
from collections.abc import Sequence

from .streams import say_error


# By command: the old option, and the new one. "" stands for an argument without an option.
RENAMED: dict[str, dict[str, str]] = {
    "calibrate": {"--normal": "", "--labelled": ""},
    "compare": {"--reference": "--references"},
    "convert": {"--checkpoint": ""},
    "evaluate": {"--reference-folder": "--references", "--save-maps": "--maps"},
    "train": {"--output": "--output_dir"},
}
# These are not deprecated, but a second spelling.
ALSO = {("train", "--output")}
# Arguments in the notes.
ARGUMENTS = {"calibrate": "PHOTOS", "convert": "CHECKPOINT"}


def with_new_spellings(arguments: Sequence[str]) -> list[str]:
    """
    Replace old spellings, and print a note for each.

    Args:
        arguments (`Sequence[str]`): arguments of the command line, starting with the name of the command.

    Returns:
        `list[str]`: the arguments in the new spelling.
    """
    command = next((one for one in arguments if not one.startswith("-")), "")
    renamed = RENAMED.get(command, {})
    found: list[str] = []
    position, end = 0, list(arguments).index("--") if "--" in arguments else len(arguments)
    while position < len(arguments):
        text = arguments[position]
        name, equals, value = text.partition("=")
        name = name.replace("_", "-")
        following = arguments[position + 1] if position + 1 < end else None
        number = value if equals else following
        if position < end and command == "evaluate" and name == "--references" and _is_count(number):
            found += ["--num-references", str(number)]
            _note("evaluate --references NUMBER", "evaluate --num-references NUMBER")
            position += 1 if equals else 2
            continue
        new = renamed.get(name) if position < end else None
        position += 1
        if new is None:
            found.append(text)
            continue
        if new:
            found.append(f"{new}{equals}{value}")
        elif equals:
            found.append(value)
        if name == "--labelled" and not any(one.startswith(("--recall", "--f1")) for one in arguments):
            found.append("--f1")
        if (command, name) not in ALSO:
            more = " --f1 (or --recall)" if name == "--labelled" else ""
            _note(f"{command} {name}", f"{command} {new or ARGUMENTS[command]}{more}")
    return found


def _is_count(text: str | None) -> bool:
    return text is not None and text.isdecimal() and not os.path.isdir(text)


def _note(old: str, new: str) -> None:
    say_error(f"vip2clip {old} is deprecated; use vip2clip {new}.")


__all__ = ["RENAMED", "with_new_spellings"]
