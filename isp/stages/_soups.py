"""Functions shared by the stages that average members of a soup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from isp import lineage
from isp.artifacts import load_ticket, save_ticket
from isp.costs import Measured
from isp.families import Method, souped
from isp.norms import check_no_statistics
from isp.sparsity import parse_sparsity
from isp.stages._work import Work, measurements, total_measured
from isp.tickets import Ticket, Validation, check_ticket


def load_members(paths: Sequence[Path]) -> list[Ticket]:
    """Load the members of a soup, in the order of their numbers."""
    return [load_ticket(path) for path in paths]


def members_of(method: Method, paths: Sequence[Path]) -> dict[str, Any]:
    """Return the required header entries of members: the soup's settings at the sparsity of the first member."""
    header = lineage.read_header(paths[0])
    if header is None or "sparsity" not in header["about"]:
        return {}  # loading it reports the problem
    sparsity = str(header["about"]["sparsity"])
    return {"sparsity": sparsity, "settings": souped.settings_of(method).of_member(parse_sparsity(sparsity))}


def save_soup(
    output: Path,
    stage: str,
    version: int,
    method: Method,
    members: Sequence[Ticket],
    work: Work,
    made_from: Mapping[str, Any],
    validation: Validation | None = None,
) -> None:
    """Average the members and write the soup. Its measurements include those of its members."""
    check_no_statistics(members[0].weights)
    first = members[0].origin
    soup = souped.mix(method, members, validation)
    took = sum((total_measured(member.origin) for member in members), Measured()) + work.measured()
    kept = {key: first[key] for key in ("architecture", "backbone", "task", "seed", "training", "limits", "device")}
    about = {"stage": stage, "version": version, "settings": method.settings.model_dump(mode="json")}
    soup = replace(soup, origin={**about, **kept, **made_from, **measurements(took, Measured())})
    check_ticket(soup)
    save_ticket(output, soup)
