"""What MkDocs calls while it builds the site; `mkdocs.yml` names this file."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.docs import links, navigation, pages  # noqa: E402

_REMOTE = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=["']?(?:https?:)?//[^>]*>""")
_log = logging.getLogger("mkdocs.hooks")  # a warning there fails a strict build
VERDICT = "<!-- verdict -->"
"""The place on the start page of the table that `isp verdict` writes to docs/verdict.md."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and every page to the navigation."""
    from mkdocs.structure.files import File

    for path, content in pages.generate().items():
        files.append(File.generated(config, path, content=content))
    config.nav = navigation.complete(config.nav or [], [file.src_uri for file in files.documentation_pages()])
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Include the verdict, and change links that lead out of the site."""
    if page.file.src_uri == "index.md":
        verdict = files.get_file_from_path("verdict.md")
        markdown = markdown.replace(VERDICT, _section(verdict.content_string) if verdict else "")
    if "/tables/" in page.file.src_uri:
        page.meta["search"] = {"exclude": True}
    known = {file.src_uri for file in files}
    return links.relocate(markdown, page.file.src_uri, known, ROOT, config.repo_url or "")


def _section(markdown: str) -> str:
    """A generated page as a section of another: its title a level lower, without the note on who writes it."""
    title, _, body = markdown.partition("\n")
    paragraphs = [text for text in body.strip().split("\n\n") if not text.startswith("`isp verdict` writes")]
    return "\n\n".join([f"#{title}", *paragraphs])


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Warn about anything that a browser would fetch from another server."""
    for tag in _REMOTE.findall(output):
        _log.warning("%s: the page fetches something from another server: %s", page.file.src_uri, tag)
    return output
