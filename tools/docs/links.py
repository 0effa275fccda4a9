"""Links of pages to files of the repository that the site does not contain."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection
from pathlib import Path

_FENCE = re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
_ELSEWHERE = re.compile(r"[a-z]+:|#")


def relocate(markdown: str, page: str, pages: Collection[str], root: Path, repository: str) -> str:
    """Return a page whose links work on the site.

    A link to a folder of the site leads to its index. A link to a file or folder of the repository that is outside the
    site leads to the repository's address, or becomes plain text if there is no address. Other links stay as they are,
    so that MkDocs reports the broken ones.

    Args:
        markdown: Content of the page.
        page: Path of the page in `docs/`.
        pages: Paths of all files of the site, relative to `docs/`.
        root: Folder of the repository.
        repository: Address below which the repository's files are shown, or "" if there is none.
    """

    def replace(match: re.Match[str]) -> str:
        label, link = match.groups()
        if _ELSEWHERE.match(link):
            return match[0]
        path, _, anchor = link.partition("#")
        here = posixpath.dirname(page)
        target = posixpath.normpath(posixpath.join("docs", here, path))
        inside = posixpath.relpath(target, "docs")
        for index in (f"{inside}/index.md", f"{inside}/README.md"):
            if index in pages:
                return f"[{label}]({posixpath.relpath(index, here or '.')}{f'#{anchor}' if anchor else ''})"
        if inside in pages or not (root / target).exists():
            return match[0]
        if repository:
            return f"[{label}]({repository.rstrip('/')}/{target})"
        return label if "`" in label else f"`{label}`" if "/" in label or "." in label else label

    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_LINK.sub(replace, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(replace, markdown[end:])])
