"""A page for each study of the reference results: its figure, its scores, and links to its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tools.docs.markdown import prose


def pages(results: Path) -> dict[str, Callable[[], str]]:
    """Return what makes the page of each study, by path in `docs/`.

    Args:
        results: Folder of the reference results, one folder for each study.
    """
    folders = [path.parent for path in sorted(results.glob("*/metrics.csv"))]
    return {f"results/{folder.name}/index.md": partial(page, folder) for folder in folders}


def page(folder: Path) -> str:
    """Return the page of a study."""
    described = folder / "study.json"
    question = json.loads(described.read_text(encoding="utf-8"))["question"] if described.exists() else ""
    tables = sorted(path.name for path in (folder / "tables").glob("*.md"))
    files = sorted(path.name for path in folder.iterdir() if path.suffix in (".csv", ".json"))
    figure = folder / "figures" / "score_by_sparsity.png"
    parts = [
        f"# {folder.name}",
        prose(question),
        "How it was run, and of which version it is: [Reference results](../README.md).",
        f"![Validation score by sparsity](figures/{figure.name})" if figure.exists() else "",
    ]
    if "scores.md" in tables:
        parts += ["## Scores", (folder / "tables" / "scores.md").read_text(encoding="utf-8")]
    links = [f"[{name.removesuffix('.md')}](tables/{name})" for name in tables if name != "scores.md"]
    parts += ["## Files", f"Tables: {', '.join(links)}." if links else ""]
    parts.append(f"Data: {', '.join(f'[{name}]({name})' for name in files)}.")
    return "\n\n".join(part for part in parts if part)
