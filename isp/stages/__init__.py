"""One file a stage of the workflow; its name is the file's stem. A stage reads artifacts, calls one function, writes.

Every file defines `VERSION`, raised when what the stage writes changes, and a function of the file's name. Its
parameters are the options of `isp <stage>`, its docstring the manual. Files that begin with an underscore hold what
stages share.
"""

from __future__ import annotations

from isp import registry

NAMES = registry.names("stage")
"""The stages."""
