"""Checks of text and file names from outside: a hub, a manifest, a study, a log."""

from __future__ import annotations

import re

# Control characters (C0 but tab and line feed, DEL, C1), line separators, bidirectional overrides, surrogates.
_UNPRINTABLE = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
_LONGEST_PART = 255
"""Largest number of bytes of one part of a path; a limit of Linux."""


def printable(text: object) -> str:
    r"""Return text that cannot control a terminal: special characters are written as in Python, `\x1b` or `\u202e`.

    Tabs and line feeds stay. Text that is already printable is returned unchanged.
    """
    return re.sub(_UNPRINTABLE, lambda match: match[0].encode("unicode_escape").decode(), str(text))


def check_file_name(name: object) -> str:
    """Return a relative file name if it is safe to use below a folder.

    Args:
        name: Name with parts separated by `/`, as a hub lists it.

    Raises:
        ValueError: If it is not text, is absolute, has an empty, `.` or `..` part, an overlong part, a backslash or a
            character that cannot be printed.
    """
    if not isinstance(name, str):
        raise ValueError(f"a file name must be text, got {name!r:.200}")
    parts = name.split("/")
    if {"", ".", ".."} & set(parts):
        problem = "is absolute or has an empty, '.' or '..' part"
    elif "\\" in name or {"\n", "\t"} & set(name) or printable(name) != name:
        problem = "has a backslash or a control character"
    elif any(len(part.encode()) > _LONGEST_PART for part in parts):
        problem = f"has a part of more than {_LONGEST_PART} bytes"
    else:
        return name
    raise ValueError(f"file name {name!r:.200} {problem}; it must be relative, such as 'data/train.parquet'")
