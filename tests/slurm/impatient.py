"""Snakemake, modified only to query Slurm about its jobs once a second.

The executor plugin waits ten seconds longer after every query without a finished job, up to three minutes, and no
setting changes that. Tests would spend much of their time waiting.
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
