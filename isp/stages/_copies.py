"""Look-ahead copies of a round as files, trained in this process or in parallel child processes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isp import artifacts, copies, lineage, registry
from isp.copies import LookAhead
from isp.costs import Cost, Measured
from isp.errors import IspError
from isp.masks import Weights
from isp.runtime import instructions
from isp.settings import parse
from isp.stages._work import Setup, inputs, read_spending, spending
from isp.superposition import Contribution, Superposition
from isp.workflow.running import by_file

POLL_SECONDS = 0.02
"""Interval at which running copies are polled, in seconds."""


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Configuration of the look-ahead copies of a round.

    Attributes:
        setup: The options that all training stages share.
        state: File of the state from which the copies start.
        within: File of the current mask; None means all weights.
        round_index: Number of the round.
        sparsity: Target sparsity of the round's mask.
        settings: Settings of the look-aheads.
        contribution: Contribution of each copy that the superposition rule needs.
        scope: How weights are ranked, see `isp.sparsity.Scope`.
        threads: Number of torch threads.
    """

    setup: Setup
    state: Path
    within: Path | None
    round_index: int
    sparsity: str
    settings: Mapping[str, Any]
    contribution: Contribution
    scope: str
    threads: int

    def about(self, member: int, output: Path) -> dict[str, Any]:
        """Return the header of a copy's file without its cost: everything that determines the file's contents.

        Raises:
            ArtifactError: The inputs do not belong together, see `inputs`.
        """
        told = {"round": self.round_index, "member": member, "sparsity": self.sparsity, "settings": self.settings}
        told |= {"contribution": self.contribution, "scope": self.scope, "threads": self.threads}
        told |= {"instruction_set": instructions.in_force()}
        made_from = inputs(output, self.setup.told(), state=self.state, within=self.within, data=self.setup.data)
        versions = {"version": registry.stage_version("weak_mask"), "copies_version": copies.VERSION}
        return {"stage": "weak_mask", **versions, **told, **self.setup.described(), **made_from}

    def save(self, member: int, output: Path, contributed: Weights, cost: Cost, measured: Measured) -> None:
        """Write the contribution of a copy."""
        save: Any = artifacts.save_weights if self.contribution == "magnitudes" else artifacts.save_mask
        save(output, contributed, {**self.about(member, output), **spending(cost, measured)})

    def add(self, superposed: Superposition, path: Path) -> tuple[Cost, Measured]:
        """Add the contribution of a copy without keeping it in memory; return its cost and measurements.

        Raises:
            ArtifactError: The file is damaged.
        """
        load: Any = artifacts.load_weights if self.contribution == "magnitudes" else artifacts.load_mask
        contributed, about = load(path)
        superposed.add(contributed)
        return read_spending(about)

    def run(self, outputs: Sequence[Path], at_once: int, progress: Callable[[int], None]) -> float:
        """Write the contributions of the copies, using parallel processes. Files of an earlier attempt are reused.

        Args:
            outputs: Output files, one per copy.
            at_once: Number of parallel processes.
            progress: Callback that receives the number of steps of each finished copy.

        Returns:
            Seconds for which this process waited.

        Raises:
            IspError: A copy failed, for the reason that it printed; the other copies are stopped.
        """
        waiting = {
            member: self._command(member, output)
            for member, output in enumerate(outputs)
            if not _is_of(output, self.about(member, output))
        }
        steps = parse(LookAhead, self.settings, "--settings").look_ahead_steps
        progress(steps * (len(outputs) - len(waiting)))
        begun = time.monotonic()
        environment = {**os.environ, "ISP_OWNER": str(os.getpid())}  # the copies exit with this process
        running: dict[int, subprocess.Popen[bytes]] = {}
        try:
            while waiting or running:
                for member in list(waiting)[: at_once - len(running)]:
                    running[member] = subprocess.Popen(waiting.pop(member), env=environment)
                time.sleep(POLL_SECONDS)
                for member in [member for member, process in running.items() if process.poll() is not None]:
                    if status := running.pop(member).returncode:
                        raise IspError(
                            f"look-ahead {member} of round {self.round_index} exited with status {status}; "
                            "its error message is above"
                        )
                    progress(steps)
        finally:  # also on a signal to stop: the next attempt resumes from the checkpoints of the copies
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
        return time.monotonic() - begun

    def _command(self, member: int, output: Path) -> list[str]:
        setup = self.setup
        options: dict[str, Any] = {
            **{"state": self.state, "within": self.within, "round": self.round_index, "member": member},
            **{"sparsity": self.sparsity, "settings": self.settings, "contribution": self.contribution},
            **{"scope": self.scope, "backbone": setup.backbone, "task": setup.task, "seed": setup.seed},
            **{"data": setup.data, "training": setup.training, "limits": setup.limits},
            **{"output": output, "threads": self.threads, "device": setup.device},
        }
        words = [word for name, value in options.items() if value is not None for word in (f"--{name}", _text(value))]
        chosen = ["--instruction-set", instructions.in_force()]
        return [sys.executable, "-m", "isp", "weak_mask", *chosen, *shlex.split(by_file(shlex.join(words)))]


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, Mapping) else str(value)


def _is_of(path: Path, about: Mapping[str, Any]) -> bool:
    """Return whether a file exists and its header contains the same values. Loading refuses a damaged file later."""
    header = lineage.read_header(path)
    return header is not None and all(
        header["about"].get(key) == value for key, value in json.loads(json.dumps(about, default=str)).items()
    )
