"""Snakemake as it is, but it asks Slurm about its jobs once a second.

The executor's plugin waits ten seconds longer after every question that found no job ended, up to three minutes, and no
setting says otherwise. Tests would spend much of their time on that.
"""

from __future__ import annotations

import asyncio

from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor


async def _sleep(executor: RemoteExecutor) -> None:
    await asyncio.sleep(1)


if __name__ == "__main__":
    RemoteExecutor.sleep = _sleep
    main()
