"""Smoke test of an installed isp: `python -P tools/smoke.py [EXTRA …]`, in the environment that it is installed in.

It needs no network, and nothing of the repository but this file. It calls the command, prunes a small module, and
saves, loads and exports the ticket. What the extras that are named install must work. Where another extra is missing,
what needs it must be an error that says how to install it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch
from safetensors.torch import load_file

import isp


def main(extras: list[str]) -> None:
    """Run all checks in an empty folder.

    Args:
        extras: Extras of isp that must be installed.
    """
    print(f"isp {metadata.version('isp')} in {os.path.dirname(isp.__file__)}, with {', '.join(extras) or 'no extras'}")
    assert isp.__version__ == metadata.version("isp")
    missing = [name for extra in extras for name in requirements(extra) if not _is_installed(name)]
    assert not missing, f"not installed: {', '.join(missing)}"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        check_commands()
        check_pruning()
        check_trainer()
        os.chdir(os.path.dirname(folder))
    print("all works")


def requirements(extra: str) -> list[str]:
    """Return the names of the packages of an extra.

    Raises:
        ValueError: If isp has no such extra.
    """
    marker = re.compile(rf"extra == ['\"]{re.escape(extra)}['\"]")
    lines = [line for line in metadata.requires("isp") or [] if marker.search(line)]
    if not lines:
        raise ValueError(f"isp has no extra {extra!r}")
    return [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines]


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def command(*arguments: str, status: int = 0) -> str:
    """Return the output of an `isp` command, whose exit status must be as given."""
    words = [sys.executable, "-P", "-m", "isp", *arguments]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    printed = done.stdout + done.stderr
    assert done.returncode == status, f"isp {' '.join(arguments)}: status {done.returncode}\n{printed}"
    assert "Traceback" not in printed, printed
    return printed


def check_commands() -> None:
    """Check the entry point, the help and the lists, and `isp run`, which needs the repository."""
    (entry,) = metadata.entry_points(group="console_scripts", name="isp")
    assert callable(entry.load())
    assert "isp_mean" in command("list", "methods")
    assert "denoisers" in command("list", "methods", "isp")
    assert "export" in command("--help")
    assert "pip install -e '.[workflow]'" in command("run", "--task", "digits", status=2)
    assert not os.listdir()


def check_pruning() -> None:
    """Prune a small module, save and load its ticket, export it, and accelerate it."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    inputs, labels = torch.randn(256, 16), torch.randint(4, (256,))
    ticket = isp.prune(model, (inputs, labels), method="gradual", sparsity=0.9, steps=50, learning_rate=1e-2)
    isp.save_ticket("ticket.safetensors", ticket)
    loaded = isp.load_ticket("ticket.safetensors", model)
    zeros = sum(int((model.state_dict()[name] == 0).sum()) for name in loaded.mask)
    assert zeros == 1152  # 0.9 of 16 * 64 + 64 * 4 weights
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.weights.items())
    isp.export(ticket, model, "exported")
    again = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    again.load_state_dict(load_file("exported/model.safetensors"))
    assert torch.equal(again(inputs), model(inputs))
    fast, report = isp.accelerate(model, inputs)
    assert torch.allclose(fast(inputs), model(inputs), atol=1e-4)
    assert ("pip install '.[accelerate]'" in str(report)) == (find_spec("numba") is None)


def check_trainer() -> None:
    """Prune in a Trainer, or check the error without its extra."""
    if not _is_installed("accelerate"):
        words = [sys.executable, "-P", "-c", "import isp.integrations.transformers"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert "pip install '.[trainer]'" in done.stderr, done.stderr
        return
    import transformers

    from isp.integrations.transformers import PruningCallback

    library: Any = transformers  # its classes have no types

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = library.BertForSequenceClassification(library.BertConfig(vocab_size=25, pad_token_id=0, **sizes))
    data = [{"input_ids": row, "labels": int(row[0] > row[1])} for row in torch.randint(5, 25, (64, 4))]
    args = library.TrainingArguments(output_dir="trainer", max_steps=10, report_to=[], save_strategy="no")
    pruning = PruningCallback(method="gradual", sparsity=0.5)
    library.Trainer(model, args, train_dataset=data, callbacks=[pruning]).train()
    assert str(pruning.ticket().sparsity) == "0.5000"


if __name__ == "__main__":
    main(sys.argv[1:])
