"""Whole texts in files of `tests/golden/`: tests assert numbers and structure, and these files hold the words."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "golden"


def check(name: str, text: str, renew: bool = False) -> None:
    """Compare a text with the golden one of its name.

    Args:
        name: Stem of the file.
        text: The text as it is now.
        renew: Whether to write it instead; read the difference that git shows before you commit it.
    """
    path = FOLDER / f"{name}.txt"
    if renew:
        FOLDER.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), f"{path}: no such file; make it by pytest --renew-golden"
    assert text == path.read_text(encoding="utf-8"), f"other words than in {path}; if meant, pytest --renew-golden"
