"""Options that several stages share, so that each has one name and one explanation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from isp import sparsity
from isp.errors import IspError, shown
from isp.parsing import load_yaml
from isp.runtime import instructions
from isp.superposition import Rule


def mapping(text: str) -> dict[str, Any]:
    """Parse a mapping from YAML text (JSON is valid YAML).

    Raises:
        IspError: The text is not a mapping. (Not ConfigError: typer would treat a ValueError as its own.)
    """
    try:
        values = load_yaml(text)
    except yaml.YAMLError:
        values = None
    if not isinstance(values, dict):
        raise IspError(f"{shown(text)} is not a YAML mapping such as '{{steps: 300, batch_size: 32}}'")
    return values


Backbone = Annotated[str, typer.Option(help="Name of a backbone (see `isp list backbones`), or a definition as YAML.")]
Task = Annotated[str, typer.Option(help="Name of a task (see `isp list tasks`), or a definition as YAML.")]
DataRoot = Annotated[Path, typer.Option(help="Folder of datasets and models in the hub's layout; searched first.")]
Manifest = Annotated[Path, typer.Option(help="Manifest from `isp download`; the files are verified against it.")]
Weights = Annotated[Path, typer.Option(help="The pre-trained backbone, from `isp pretrain` or `isp convert`.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of data order, augmentation, dropout and look-aheads.")]
Data = Annotated[Path, typer.Option(help="Prepared training examples, from `isp prepare`.")]
Limits = Annotated[
    dict[str, Any],
    typer.Option(parser=mapping, metavar="YAML", help="Task limits: num_train, num_validation, augmentation."),
]
Training = Annotated[
    dict[str, Any],
    typer.Option(
        parser=mapping,
        metavar="YAML",
        help="Training protocol: steps (T), batch_size, learning_rate, warmup_steps, weight_decay, clip_norm, "
        "precision.",
    ),
]
MethodName = Annotated[str, typer.Option(help="Name of a method (see `isp list methods`), or the path of its file.")]
MethodSettings = Annotated[
    dict[str, Any],
    typer.Option(parser=mapping, metavar="YAML", help="Settings of the method; its file defines the keys."),
]
LookAheadSettings = Annotated[
    dict[str, Any],
    typer.Option(
        parser=mapping,
        metavar="YAML",
        help="Settings of look-aheads: look_ahead_steps, learning_rate_factors, weight_decays, optimizer, "
        "warmup_steps, data_fraction.",
    ),
]
RoundStart = Annotated[
    Path, typer.Option(help="The state to start from: that of the previous round, or the initial one.")
]
Until = Annotated[int, typer.Option(min=1, help="The step of the run to train to.")]
Denoisers = Annotated[int, typer.Option(min=0, help="Number of look-ahead copies (N); 0 is plain magnitude pruning.")]
SuperpositionRule = Annotated[Rule, typer.Option(help="How the weak masks are superposed.")]
RoundState = Annotated[Path, typer.Option(help="The state at the end of the round's segment.")]
Round = Annotated[int, typer.Option("--round", min=0, help="Number of the round, from 0.")]
Sparsity = Annotated[str, typer.Option(help="Fraction of the prunable weights that are zero, in (0, 1).")]
Scope = Annotated[
    sparsity.Scope, typer.Option(help="How weights are ranked: global, layer, or a pattern N:M such as 2:4.")
]
Within = Annotated[
    Path | None,
    typer.Option(help="The current mask; pruned weights stay pruned. Default: dense."),
]
WithinRound = Annotated[
    Path | None,
    typer.Option(help="The current mask; pruned weights stay pruned. Default: that of the state, or dense."),
]
Threads = Annotated[int, typer.Option(min=1, help="Number of torch threads; the result depends on it to the bit.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
InstructionSet = Annotated[
    instructions.InstructionSet | None,
    typer.Option(
        help="CPU kernels: avx2, for bit-identical results on all Intel CPUs with AVX2, or native. Default: avx2 for "
        "float32 on a CPU that supports it."
    ),
]
ValidationData = Annotated[Path, typer.Option(help="Prepared validation examples, from `isp prepare`.")]
Output = Annotated[Path, typer.Option(help="The artifact to write.")]
Metrics = Annotated[Path, typer.Option(help="metrics.csv of a study, from `isp collect`.")]
Rounds = Annotated[Path, typer.Option(help="rounds.csv of a study, from `isp collect`.")]
Layers = Annotated[Path, typer.Option(help="layers.csv of a study, from `isp collect`.")]
Similarity = Annotated[Path, typer.Option(help="similarity.csv of a study, from `isp collect`.")]
