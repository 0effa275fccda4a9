"""Stages of the workflow, one file per stage, named after the file's stem.

A stage reads artifacts, calls one function and writes the result. Every file defines `VERSION`, which is raised when
the output of the stage changes, and a function with the name of the file. The function's parameters are the options
of `isp <stage>`, and its docstring is the manual. Files whose names begin with an underscore hold code that stages
share.
"""

from __future__ import annotations

from isp import registry

NAMES = registry.names("stage")
"""Names of the stages."""
