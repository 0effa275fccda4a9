"""Registry of methods, tasks and backbones by file stem: every file in a folder is an entry, and there is no list.

A method may also be a file elsewhere, named by its path. Loading it runs its code, unless `stand_in` was called for it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Literal

from isp.errors import ConfigError, unknown

Kind = Literal["method", "task", "backbone"]
KINDS: tuple[Kind, ...] = ("method", "task", "backbone")
_FOLDERS = {"method": "methods", "task": "tasks", "backbone": "backbones", "family": "families", "stage": "stages"}
_stand_ins: dict[str, ModuleType] = {}


@cache
def names(kind: Kind | Literal["family", "stage"]) -> tuple[str, ...]:
    """Return the sorted entries of a kind: stems of the files in its folder that do not begin with an underscore."""
    folder = Path(__file__).parent / _FOLDERS[kind]
    return tuple(sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")))


def load(kind: Kind, name: str) -> ModuleType:
    """Import the module of an entry.

    Raises:
        ConfigError: If there is no such entry (the message names the allowed ones and the nearest), or a method's file
            cannot be loaded.
    """
    if kind == "method" and name.endswith(".py"):
        return _stand_ins.get(name) or _load_file(Path(name))
    if name not in names(kind):
        raise ConfigError(unknown(kind, name, names(kind)))
    return importlib.import_module(f"isp.{kind}s.{name}")


def stand_in(path: str, module: ModuleType) -> None:
    """Use a module in place of a method's file in this process, so that the file's code does not run."""
    _stand_ins[path] = module


def summary(kind: Kind, name: str) -> str:
    """Return the first line of an entry's docstring."""
    return (load(kind, name).__doc__ or "").strip().split("\n")[0]


@cache
def stage_version(name: str) -> int:
    """Return the `VERSION` of a stage, read from its file because importing a stage imports torch."""
    tree = ast.parse((Path(__file__).parent / _FOLDERS["stage"] / f"{name}.py").read_text(encoding="utf-8"))
    values = (
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "VERSION"
    )
    version: int = ast.literal_eval(next(values))
    return version


def _load_file(path: Path) -> ModuleType:
    """Load a method from a file, once as long as the file does not change."""
    if path.exists() and not path.is_file():  # reading a device or a FIFO may never end
        raise ConfigError(f"method {str(path)!r}: not a regular file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"method {str(path)!r}: cannot be read ({error.strerror})") from None
    name = f"isp_method_{path.stem}_{hashlib.sha256(content).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    sys.modules[name] = module  # where pydantic looks for the names in annotations
    try:
        # Run exactly the bytes that were read: Python's own loader may use old byte code and writes some to the folder.
        exec(compile(content, str(path), "exec"), module.__dict__)
        missing = [each for each in ("FAMILY", "VERSION", "Settings") if not hasattr(module, each)]
        if missing:
            raise ConfigError(f"method {str(path)!r}: must define {' and '.join(missing)}")
        if module.FAMILY not in names("family"):
            raise ConfigError(f"method {str(path)!r}: {unknown('family', module.FAMILY, names('family'))}")
    except ConfigError:
        del sys.modules[name]
        raise
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"method {str(path)!r}: cannot be loaded ({type(error).__name__}: {error})") from None
    return module
