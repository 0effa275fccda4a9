"""Settings with which a study was started, so that cluster jobs that begin later refuse an edited study file.

A cluster job reads the study file again when it leaves the queue. If the file was edited in the meantime, the job would
compute with other settings, or write other files, than Snakemake recorded for it when it was submitted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

from isp.config import Study
from isp.errors import ConfigError

PINNED = "ISP_SETTINGS"
"""Environment variable with a digest of each setting, by its key in the study file, as JSON.

It is not a parameter of jobs, like `isp.registry.PINNED`.
"""
ENTRIES = ("training", "tasks", "variants", "define.backbones", "define.tasks")
"""Keys whose entries have a digest each, so that the message names the entry."""
WHOLE = ("grid", "device", "threads", "instruction_set", "keep_weak_masks", "look_aheads")
"""Other keys on which results, or the files of a job, depend. A job that compares tickets reads those of all cells."""


def pin(study: Study) -> None:
    """Make the jobs that this process submits keep to the settings of the study as it is now."""
    os.environ[PINNED] = json.dumps(dict(_digests(study)))


def check_unedited(study: Study) -> None:
    """Refuse a study in which a setting was edited, added or removed since the study was started.

    Raises:
        ConfigError: If there is such a setting. The message names its key.
    """
    if not (pinned := os.environ.get(PINNED)):
        return
    started, now = json.loads(pinned), dict(_digests(study))
    edited = [key for key in {**started, **now} if started.get(key) != now.get(key)]
    if edited:
        raise ConfigError(
            f"{', '.join(edited)}: edited while the study runs; run the same command again, which repeats the jobs "
            "that the edit affects, or restore the file before you do"
        )


def _digests(study: Study) -> Iterator[tuple[str, str]]:
    """Yield the key of each setting on which a job depends, and the digest of its value.

    Defaults are left out, since that of `instruction_set` depends on the machine.
    """
    values = study.model_dump(mode="json", exclude_unset=True)
    for key in WHOLE:
        yield key, _digest(values.get(key))
    for key in ENTRIES:
        entries: dict[str, Any] = values
        for part in key.split("."):
            entries = entries.get(part, {})
        for name, value in entries.items():
            yield f"{key}.{name}", _digest(value)


def _digest(value: object) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()
