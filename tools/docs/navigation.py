"""The navigation of the site: what `mkdocs.yml` lists, then every other page in the section of its folder."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

SECTIONS = {"Tutorial": "tutorial", "How-to": "how-to", "Reference": "reference", "Explanation": "explanation"}
"""The folder of each section, by title."""
GROUPS = {"reference/methods": ("Reference", "Methods"), "results": ("Reference", "Results")}
"""Section and title of each folder whose pages are a group of their own; the index of the folder comes first."""
_INDEX = ("index.md", "README.md")


def complete(navigation: Iterable[Any], pages: Iterable[str]) -> list[Any]:
    """Return the navigation with the pages that it does not name.

    Args:
        navigation: Entries as in `mkdocs.yml`: paths, and mappings of a title to a path or to entries.
        pages: Paths of all pages, relative to `docs/`.
    """
    entries = list(navigation)
    named = set(_paths(entries))
    left = [page for page in sorted(pages, key=_order) if page not in named]
    additions: dict[str, list[Any]] = {}
    for folder, (section, title) in GROUPS.items():
        group = [page for page in left if page.startswith(f"{folder}/") and "/tables/" not in page]
        if group:
            additions.setdefault(section, []).append({title: group})
    for section, folder in SECTIONS.items():
        more = [page for page in left if posixpath.dirname(page) == folder]
        additions[section] = [*more, *additions.get(section, [])]
    return [_extended(entry, additions) if isinstance(entry, dict) else entry for entry in entries]


def _extended(entry: Mapping[str, Any], additions: Mapping[str, list[Any]]) -> dict[str, Any]:
    """A section with its additions; a page under a title as it is."""
    return {
        title: [*inner, *additions.get(title, [])] if isinstance(inner, list) else inner
        for title, inner in entry.items()
    }


def _order(page: str) -> tuple[str, bool, str]:
    """Pages by folder, the index of a folder first."""
    folder, name = posixpath.split(page)
    return (folder, name not in _INDEX, name)


def _paths(entries: Iterable[Any]) -> Iterator[str]:
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        else:
            for inner in entry.values():
                yield from _paths([inner] if isinstance(inner, str) else inner)
