"""The uniform soup: the average of all members."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isp.families import make_method
from isp.stages._options import MethodName, MethodSettings, Output
from isp.stages._soups import load_members, members_of, save_soup
from isp.stages._work import inputs, working

VERSION = 1


def average_members(
    member: Annotated[
        list[Path], typer.Option(help="Member from `isp train_member`; repeat for each, in their order.")
    ],
    method: MethodName,
    settings: MethodSettings,
    output: Output,
) -> None:
    """Write the average of the members as a ticket. Its cost is the total cost of the members."""
    chosen = make_method(method, settings, "--settings")
    with working(output) as work:
        made_from = inputs(output, members_of(chosen, member), members=member)
        save_soup(output, "average_members", VERSION, chosen, load_members(member), work, made_from)
