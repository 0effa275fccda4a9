"""Files that a study no longer needs: temporary outputs kept by `notemp`, and leftovers of interrupted jobs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from isp.errors import IspError
from isp.workflow.jobs import Jobs
from isp.workflow.status import Seen, State, states_of

CHECKPOINT = ".checkpoint.safetensors"
LEFT = re.compile(r"(.+)/rounds?\d+(?:-\d+)?/state(?:\.checkpoint|\.last_good_\w+)?\.safetensors")
"""A state between rounds, its checkpoint or its last good state, below the folder of the chain of rounds."""
LAST_GOOD = (".last_good_state.safetensors", ".last_good_mask.safetensors")


def unneeded(jobs: Jobs, seen: Seen) -> dict[str, list[str]]:
    """Return the files that can be deleted without any rerun, by the rule that made them or by their kind.

    These are temporary outputs that only finished jobs need, checkpoints and last good states of finished jobs, and
    states of rounds that the study has reached in another way. While a chain has unfinished rounds, those stay: a run
    with another `look_aheads` may resume from them. (It may have to train segments again whose states this one, with
    the present `look_aheads`, no longer needs.)

    Args:
        jobs: Jobs of the study.
        seen: Contents of the study's folder.

    Raises:
        IspError: A job of the study is running.
    """
    running = sorted(output for output, mark in seen.marks.items() if mark.lives and _is_of(jobs, output))
    if running:
        more = f" and {len(running) - 1} more" if len(running) > 1 else ""
        raise IspError(f"{running[0]}: its job is running{more}; wait until the study has finished, or stop it")
    states = states_of(jobs, seen)
    needed = {path for job in jobs.by_output.values() if states[job.output] != "done" for path in job.inputs}
    unneeded_: dict[str, list[str]] = {}
    for job in jobs.by_output.values():
        passing = [path for path in job.passing if path in seen.files]
        if passing and job.output not in needed and states[job.output] == "done":
            unneeded_.setdefault(job.rule, []).extend(passing)
    made = [(match[1], states[output]) for output in jobs.by_output if (match := LEFT.fullmatch(output))]
    chains = {chain for chain, _ in made} - {chain for chain, state in made if state != "done"}
    for path in sorted(seen.files):
        left = LEFT.fullmatch(path)
        if left and left[1] in chains and f"{path.rpartition('/')[0]}/state.safetensors" not in jobs.by_output:
            unneeded_.setdefault("left states", []).append(path)
            continue
        for kind, endings in {"checkpoints": (CHECKPOINT,), "last good states": LAST_GOOD}.items():
            for ending in endings:
                if path.endswith(ending) and _is_of(jobs, path) and _is_done(path.removesuffix(ending), states):
                    unneeded_.setdefault(kind, []).append(path)
    return unneeded_


def _is_of(jobs: Jobs, path: str) -> bool:
    return path.startswith(f"results/{jobs.study.study}/runs/")


def _is_done(stem: str, states: Mapping[str, State]) -> bool:
    return states.get(f"{stem}.safetensors") == "done"


def sizes(found: Mapping[str, list[str]]) -> dict[str, tuple[int, int]]:
    """Return the number of files and their size in bytes, by kind."""
    return {kind: (len(paths), sum(map(_size, paths))) for kind, paths in found.items()}


def _size(path: str) -> int:
    with suppress(OSError):
        return os.stat(path).st_size
    return 0


def delete(found: Mapping[str, list[str]]) -> None:
    """Delete files.

    Raises:
        IspError: A file cannot be deleted; those before it are already deleted.
    """
    for path in (path for paths in found.values() for path in paths):
        try:
            Path(path).unlink(missing_ok=True)
        except OSError as error:
            raise IspError(f"{path}: cannot be deleted ({error.strerror or error})") from None
