"""Settings with which a study was started, so that cluster jobs that begin later refuse an edited study file.

A cluster job reads the study file again when it leaves the queue. If the file was edited in the meantime, the job would
compute with other settings than those that Snakemake recorded for it when it was submitted.
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
"""Keys whose entries are pinned one by one, so that entries can be added while the study runs."""
WHOLE = ("device", "threads", "instruction_set", "keep_weak_masks")


def pin(study: Study) -> None:
    """Make the jobs that this process submits keep to the settings of the study as it is now."""
    os.environ[PINNED] = json.dumps(dict(_digests(study)))


def check_unedited(study: Study) -> None:
    """Refuse a study in which a setting of a job was edited since the study was started. Further cells are allowed.

    Raises:
        ConfigError: If a setting has another value or is gone. The message names its key.
    """
    started = json.loads(os.environ.get(PINNED) or "{}")
    now = dict(_digests(study))
    edited = [key for key, digest in started.items() if now.get(key) != digest]
    if edited:
        raise ConfigError(
            f"{', '.join(edited)}: edited while the study runs; run the same command again, which repeats the jobs "
            "that the edit affects, or restore the file before you do"
        )


def _digests(study: Study) -> Iterator[tuple[str, str]]:
    """Yield the key of each setting on which results depend, and the digest of its value.

    Left out are `grid`, because a cell depends on no other, and what is not part of a result (`question`,
    `data_root`, `throughput`, `look_aheads`, `reference`). Defaults are left out as well, since that of
    `instruction_set` depends on the machine.
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
