"""What the stages that mix members share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from isp.api import load_ticket, save_ticket
from isp.costs import Measured
from isp.families import Method, Ticket, Validation, check_ticket, souped
from isp.stages._work import Work, all_taken, inputs, taken


def load_members(paths: Sequence[Path]) -> list[Ticket]:
    """The members of a soup, in the order of their numbers."""
    return [load_ticket(path) for path in paths]


def save_soup(
    output: Path,
    stage: str,
    version: int,
    method: Method,
    members: Sequence[Ticket],
    work: Work,
    made_of: Mapping[str, Path | Sequence[Path]],
    validation: Validation | None = None,
) -> None:
    """Mix the members and write the soup; what they took is part of what it took."""
    first = members[0].origin
    soup = souped.mix(method, members, validation)
    took = sum((all_taken(member.origin) for member in members), Measured()) + work.measured()
    kept = {key: first[key] for key in ("architecture", "backbone", "task", "seed", "training", "limits", "device")}
    about = {"stage": stage, "version": version, "settings": method.settings.model_dump(mode="json")}
    soup = replace(soup, origin={**about, **kept, **inputs(**made_of), **taken(took, Measured())})
    check_ticket(soup)
    save_ticket(output, soup)
