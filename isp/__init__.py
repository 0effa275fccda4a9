"""Prune pre-trained transformers while they are fine-tuned: Instant Soup Pruning and its baselines.

import isp

ticket = isp.prune(model, (inputs, labels), sparsity=0.9, steps=1000, learning_rate=1e-4)
isp.save_ticket("ticket.safetensors", ticket)
isp.export(ticket, model, "folder")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isp.acceleration import accelerate
    from isp.api import Ticket, load_ticket, prune, save_ticket
    from isp.exporting import export

__all__ = ["Ticket", "accelerate", "export", "load_ticket", "prune", "save_ticket"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import torch only when something that needs it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'isp' has no attribute {name!r}")
    if name == "accelerate":
        from isp.acceleration import accelerate

        return accelerate
    if name == "export":
        from isp.exporting import export

        return export
    from isp import api

    return getattr(api, name)
