"""Processes of one job of torch.distributed, on this machine and the CPU."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing


def run_checks(checks: Mapping[str, Callable[[], None]], ranks: int, folder: Path) -> dict[str, str]:
    """Run functions on every rank, one after another, in processes that are started only once.

    Args:
        checks: Functions of a module, by name. Each must raise on all ranks or on none, as others would wait.
        ranks: Number of processes.
        folder: Folder of the store and the results.

    Returns:
        The traceback of each check that failed on some rank; "" for one that passed on all.
    """
    torch.multiprocessing.spawn(_run, (dict(checks), ranks, folder), nprocs=ranks)
    results = [torch.load(folder / f"rank{rank}") for rank in range(ranks)]
    return {name: "\n".join(filter(None, (result[name] for result in results))) for name in checks}


def _run(rank: int, checks: Mapping[str, Callable[[], None]], ranks: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    results = {}
    for name, check in checks.items():
        try:
            check()
            results[name] = ""
        except Exception:
            results[name] = f"rank {rank}: {traceback.format_exc()}"
    torch.save(results, folder / f"rank{rank}")
    dist.destroy_process_group()
