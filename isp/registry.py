"""Registry of methods, tasks and backbones by file stem: every file in a folder is an entry, and there is no list.

A method may also be a file elsewhere, named by its path. Loading it runs its code, unless `stand_in` was called for it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import os
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Literal

from isp.errors import ConfigError, shown, unknown
from isp.settings import Settings

Kind = Literal["method", "task", "backbone"]
KINDS: tuple[Kind, ...] = ("method", "task", "backbone")
_FOLDERS = {"method": "methods", "task": "tasks", "backbone": "backbones", "family": "families", "stage": "stages"}
_stand_ins: dict[str, ModuleType] = {}
PINNED = "ISP_METHODS"
"""Environment variable with the modules of the methods' files with which a study was started: JSON, by absolute path.

It is not a parameter of jobs, so that a study that was started elsewhere or by an earlier commit does not rerun.
"""


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


def pin(sources: Iterable[str]) -> None:
    """Make this process and its children keep to the content that the methods' files have now.

    This process uses the modules that it has loaded, whatever becomes of the files. A child that starts when a file has
    another content refuses it, because Snakemake records the version that this process has loaded for all jobs.

    Args:
        sources: Methods of a study; names of the package's own methods are ignored.

    Raises:
        ConfigError: If a method's file cannot be loaded.
    """
    unpin()
    modules = {os.path.abspath(each): load("method", each).__name__ for each in sources if each.endswith(".py")}
    if modules:
        os.environ[PINNED] = json.dumps(modules)


def unpin() -> None:
    """Forget the content of methods' files with which an earlier study was started."""
    os.environ.pop(PINNED, None)


def _pinned_module(path: Path) -> str:
    """Return the name of the module with which the study of this process was started; "" if it is unknown."""
    text = os.environ.get(PINNED)
    return str(json.loads(text).get(os.path.abspath(path), "")) if text else ""


def _load_file(path: Path) -> ModuleType:
    """Load a method from a file, once as long as the file does not change."""
    pinned = _pinned_module(path)
    if pinned in sys.modules:
        return sys.modules[pinned]
    if path.exists() and not path.is_file():  # reading a device or a FIFO may never end
        raise ConfigError(f"method {str(path)!r}: not a regular file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"method {str(path)!r}: cannot be read ({error.strerror})") from None
    name = f"isp_method_{path.stem}_{hashlib.sha256(content).hexdigest()[:12]}"
    if pinned not in ("", name):
        raise ConfigError(
            f"method {str(path)!r}: was edited while the study runs (its SHA-256 began with {pinned[-12:]} when the "
            f"study was started, and begins with {name[-12:]} now); run the same command again, which repeats the jobs "
            "that the edit affects, or restore the file before you do"
        )
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    sys.modules[name] = module  # where pydantic looks for the names in annotations
    try:
        _run(content, path, module)
        _check(module, path)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _run(content: bytes, path: Path, module: ModuleType) -> None:
    """Run exactly the bytes that were read: Python's own loader may use old byte code and writes some to the folder."""
    try:
        exec(compile(content, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        problem = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise ConfigError(f"method {str(path)!r}: cannot be loaded ({problem})") from None


def _check(module: ModuleType, path: Path) -> None:
    """Refuse a module without the definitions of every method; `isp.families.make_method` checks those of its family.

    Raises:
        ConfigError: If a definition is missing or of the wrong kind. The message names the file and the definition.
    """
    where = f"method {str(path)!r}"
    missing = [each for each in ("FAMILY", "VERSION", "Settings") if not hasattr(module, each)]
    if missing:
        raise ConfigError(f"{where}: must define {' and '.join(missing)}")
    if module.FAMILY not in names("family"):
        raise ConfigError(f"{where}: {unknown('family', module.FAMILY, names('family'))}")
    if type(module.VERSION) not in (int, str):
        raise ConfigError(f"{where}: VERSION = {shown(module.VERSION)}: must be an integer or a text")
    if not (isinstance(module.Settings, type) and issubclass(module.Settings, Settings)):
        raise ConfigError(
            f"{where}: Settings must be a class derived from isp.settings.Settings, got {shown(module.Settings)}"
        )
