"""Tasks of the GLUE dataset. Its test labels are hidden, so tickets are scored on the official dev set."""

from __future__ import annotations

from typing import Any

from isp.data.sources import HubDataset
from isp.tasks import TextTask


def glue(name: str, *, inputs: tuple[str, ...], test: str = "validation", **settings: Any) -> TextTask:
    """Return a task of GLUE.

    Args:
        name: Name of its configuration on the hub.
        inputs: Columns that contain its texts.
        test: Split that is scored once.
        settings: Other fields of `TextTask`.
    """
    revision = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
    source = HubDataset(id="nyu-mll/glue", revision=revision, folder=name, inputs=inputs, test=test)
    return TextTask(source=source, **settings)
