"""Functions that the children of a fork server run in tests."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

CODES = [None, 0, 2, 3, 256, True, "a reason"]


def act(arguments: list[str]) -> None:
    """Run as the child of a light server."""
    what, *rest = arguments
    if what == "exit":
        raise SystemExit(CODES[int(rest[0])])
    if what == "fail":
        raise ValueError("what went wrong")
    if what == "show":
        umask = os.umask(0)
        shown = {"arguments": sys.argv, "folder": os.getcwd(), "environment": dict(os.environ), "umask": umask}
        shown |= {"stdin": sys.stdin.read(), "temporary": tempfile.gettempdir()}
        shown |= {"signals": [str(signal.getsignal(number)) for number in (signal.SIGCHLD, signal.SIGINT)]}
        print(json.dumps(shown))
        print("to stderr", file=sys.stderr)
    if what == "parent":
        print(os.getppid())
    if what == "finish":  # when a signal says so
        signal.signal(signal.SIGUSR1, lambda number, _: sys.exit(128 + number))
    if what in ("sleep", "finish"):
        Path(rest[0]).write_text(f"{os.getpid()} {os.getppid()}\n")
        time.sleep(600)
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "train":
        _train(int(rest[0]))


def _train(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layer = torch.nn.Linear(300, 300)
    inputs = torch.randn(2000, 300)
    for _ in range(3):
        layer.zero_grad()
        (layer(inputs) - inputs.sin()).square().mean().backward()
        with torch.no_grad():
            layer.weight -= layer.weight.grad
    print(threads, layer.weight.sum(dtype=torch.float64).item().hex())
