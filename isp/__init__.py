"""Prune pre-trained transformers while they are fine-tuned: Instant Soup Pruning and its baselines.

import isp

ticket = isp.prune(model, (inputs, labels), sparsity=0.9, steps=1000, learning_rate=1e-4)
isp.save_ticket("ticket.safetensors", ticket)
isp.export(ticket, model, "folder")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isp.acceleration import accelerate
    from isp.api import Ticket, load_ticket, prune, save_ticket
    from isp.exporting import export
    from isp.pruner import Pruner
    from isp.rng import seed_step
    from isp.training import BatchOrder

__all__ = [
    "BatchOrder",
    "Pruner",
    "Ticket",
    "accelerate",
    "export",
    "load_ticket",
    "prune",
    "save_ticket",
    "seed_step",
]
__version__ = "0.1.0"


_PLACES = {
    "BatchOrder": "training",
    "Pruner": "pruner",
    "accelerate": "acceleration",
    "export": "exporting",
    "seed_step": "rng",
}
"""Modules of the public names that are not in `isp.api`."""


def __getattr__(name: str) -> Any:
    """Import torch only when a name that needs it is requested."""
    if name not in __all__:
        raise AttributeError(f"module 'isp' has no attribute {name!r}")
    module = importlib.import_module(f"isp.{_PLACES.get(name, 'api')}")
    return getattr(module, name)
