"""What the tasks of GLUE have in common: the data set. Its test labels are hidden, so the dev set is scored."""

from __future__ import annotations

from typing import Any

from isp.data.sources import HubDataset
from isp.tasks import TextTask


def glue(name: str, *, inputs: tuple[str, ...], test: str = "validation", **settings: Any) -> TextTask:
    """A task of GLUE.

    Args:
        name: its configuration on the hub.
        inputs: its columns of texts.
        test: the split that is scored once.
        settings: of `TextTask`.
    """
    revision = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
    source = HubDataset(id="nyu-mll/glue", revision=revision, folder=name, inputs=inputs, test=test)
    return TextTask(source=source, **settings)
