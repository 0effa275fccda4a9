"""The reference of the `isp` command, from its typer application."""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any, Literal

import typer

from isp import stages
from isp.cli import PEOPLE, app
from tools.docs.markdown import code, first_line, prose, table

_NAMES = {int: "integer", float: "number", str: "text", Path: "path", bool: ""}


def page() -> str:
    """Return the page that describes every command with its arguments and options."""
    group: Any = typer.main.get_command(app)
    names = [name for name in group.list_commands(None) if name not in stages.NAMES or name in PEOPLE]
    inner = [name for name in stages.NAMES if name not in PEOPLE]
    parts = [
        "# Command line",
        f"{group.help} `isp --help` lists the commands, and `isp COMMAND --help` prints the manual of one. This page "
        "is generated from the same source.",
        table(("command", "what it does"), [(f"[`isp {name}`](#isp-{name})", _summary(group, name)) for name in names]),
        "User errors are printed without a traceback, and the exit status is 2.",
    ]
    for name in names:
        parts += _section(group, name)
    parts += [
        "## Stages",
        "Every step of the workflow is a command, too. Snakemake calls these, and you can call one by hand: it reads "
        "artifacts, calls one function and writes its output.",
    ]
    for name in inner:
        parts += _section(group, name, level=3)
    return "\n\n".join(part for part in parts if part)


def command(group: Any, name: str) -> Any:
    """Return the command itself; a stage is imported."""
    return group.resolve_command(None, [name])[1] if name in stages.NAMES else group.commands[name]


def _summary(group: Any, name: str) -> str:
    return prose(first_line(command(group, name).help))


def _section(group: Any, name: str, level: int = 2) -> list[str]:
    called = command(group, name)
    shown = [parameter for parameter in called.params if not getattr(parameter, "hidden", False)]
    arguments = [parameter for parameter in shown if parameter.param_type_name == "argument"]
    names = " ".join(metavar(each) if each.required else f"[{metavar(each)}]" for each in arguments)
    rows = [
        (code(metavar(each)) if each in arguments else code(_written(each)), _default(each), prose(each.help or ""))
        for each in shown
        if each.name != "help"
    ]
    usage = " ".join(filter(None, ["isp", name, "[OPTIONS]" if len(shown) > len(arguments) else "", names]))
    text = re.sub(r"\n(?=\S)", " ", (called.help or "").replace("\n\n", "\0")).replace("\0", "\n\n")
    return [
        f"{'#' * level} isp {name}",
        f"```sh\n{usage}\n```",
        prose(text),
        table(("argument or option", "default", "meaning"), rows),
    ]


def metavar(parameter: Any) -> str:
    """Return the placeholder of an argument."""
    return str(parameter.metavar or parameter.name).upper()


def _written(parameter: Any) -> str:
    """An option as it is written, with what it takes."""
    kind = parameter.type_descriptor.annotation
    if typing.get_origin(kind) is list:
        kind = typing.get_args(kind)[0]
    if parameter.metavar:
        value = parameter.metavar
    elif typing.get_origin(kind) is Literal:
        value = "|".join(map(str, typing.get_args(kind)))
    else:
        value = _NAMES.get(kind, "text")
    return " ".join(filter(None, [", ".join(parameter.opts), value.upper() if value.isalpha() else value]))


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    return "" if parameter.default in (None, ()) or parameter.default is False else code(str(parameter.default))
