"""Methods, tasks and backbones are found by file stem: one file in the folder is one entry, no list to edit."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Literal

from isp.errors import ConfigError, unknown

Kind = Literal["method", "task", "backbone"]
KINDS: tuple[Kind, ...] = ("method", "task", "backbone")


@cache
def names(kind: Kind) -> tuple[str, ...]:
    """The entries of a kind, sorted: stems of the files in `isp/<kind>s/` that do not begin with an underscore."""
    folder = Path(__file__).parent / f"{kind}s"
    return tuple(sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")))


def load(kind: Kind, name: str) -> ModuleType:
    """The module of an entry.

    Raises:
        ConfigError: no such entry; names the allowed ones and the nearest.
    """
    if name not in names(kind):
        raise ConfigError(unknown(kind, name, names(kind)))
    return importlib.import_module(f"isp.{kind}s.{name}")


def summary(kind: Kind, name: str) -> str:
    """The first line of an entry's docstring."""
    return (load(kind, name).__doc__ or "").strip().split("\n")[0]
