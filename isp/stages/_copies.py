"""Look-ahead copies of a round as files, and in processes of their own, side by side."""

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
from isp.stages._work import Setup, inputs, spending, spent
from isp.superposition import Contribution, Superposition
from isp.workflow.running import by_file

POLL_SECONDS = 0.02
"""Between two looks at whether a copy has ended."""


@dataclass(frozen=True, kw_only=True)
class Copies:
    """What the copies of a round are told.

    Attributes:
        setup: As every stage that trains.
        state: The state that they begin from.
        within: The current mask; None: all weights.
        round_index: Number of the round.
        sparsity: Of the round's mask.
        settings: Of look-aheads.
        contribution: What the rule of superposition needs of them.
        scope: Whether layers are ranked together.
        threads: Of torch.
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
        """What the header of a copy's file says, but for what it cost: all that decides what is in it.

        Raises:
            ArtifactError: As `inputs`.
        """
        told = {"round": self.round_index, "member": member, "sparsity": self.sparsity, "settings": self.settings}
        told |= {"contribution": self.contribution, "scope": self.scope, "threads": self.threads}
        told |= {"instruction_set": instructions.in_force()}
        made_from = inputs(output, self.setup.told(), state=self.state, within=self.within, data=self.setup.data)
        versions = {"version": registry.stage_version("weak_mask"), "copies_version": copies.VERSION}
        return {"stage": "weak_mask", **versions, **told, **self.setup.described(), **made_from}

    def save(self, member: int, output: Path, contributed: Weights, cost: Cost, measured: Measured) -> None:
        """Write what a copy contributes."""
        save: Any = artifacts.save_weights if self.contribution == "magnitudes" else artifacts.save_mask
        save(output, contributed, {**self.about(member, output), **spending(cost, measured)})

    def add(self, superposed: Superposition, path: Path) -> tuple[Cost, Measured]:
        """Add what a copy contributed, which then leaves memory; return what it cost and took.

        Raises:
            ArtifactError: The file is damaged.
        """
        load: Any = artifacts.load_weights if self.contribution == "magnitudes" else artifacts.load_mask
        contributed, about = load(path)
        superposed.add(contributed)
        return spent(about)

    def run(self, outputs: Sequence[Path], at_once: int, progress: Callable[[int], None]) -> float:
        """Write what the copies contribute, by processes side by side; files that an earlier attempt left are taken.

        Args:
            outputs: Where to, one for each copy.
            at_once: Number of processes.
            progress: Called with the number of steps of every copy that has ended.

        Returns:
            Seconds that this process waited for them.

        Raises:
            IspError: A copy failed, for the reason that it has printed; the others are stopped.
        """
        waiting = {
            member: self._command(member, output)
            for member, output in enumerate(outputs)
            if not _is_of(output, self.about(member, output))
        }
        steps = parse(LookAhead, self.settings, "--settings").look_ahead_steps
        progress(steps * (len(outputs) - len(waiting)))
        begun = time.monotonic()
        environment = {**os.environ, "ISP_OWNER": str(os.getpid())}  # they end with this process
        running: dict[int, subprocess.Popen[bytes]] = {}
        try:
            while waiting or running:
                for member in list(waiting)[: at_once - len(running)]:
                    running[member] = subprocess.Popen(waiting.pop(member), env=environment)
                time.sleep(POLL_SECONDS)
                for member in [member for member, process in running.items() if process.poll() is not None]:
                    if status := running.pop(member).returncode:
                        raise IspError(
                            f"look-ahead {member} of round {self.round_index} ended with status {status}; "
                            "what it said is above"
                        )
                    progress(steps)
        finally:  # also where this process is told to end: what they save is found by the next attempt
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
    """Whether a file is there and its header says the same; one that is damaged is refused when it is loaded."""
    header = lineage.read_header(path)
    return header is not None and all(
        header["about"].get(key) == value for key, value in json.loads(json.dumps(about, default=str)).items()
    )
