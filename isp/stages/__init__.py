"""One file a stage of the workflow; its name is the file's stem. A stage reads artifacts, calls one function, writes.

Every file defines `VERSION`, raised when what the stage writes changes, and a function of the file's name. Its
parameters are the options of `isp <stage>`, its docstring the manual. Files that begin with an underscore hold what
stages share.
"""

from __future__ import annotations

NAMES = (
    *("download", "split", "pretrain", "convert", "prepare", "initialise", "finetune_dense"),
    *("prune_one_shot", "prune_iterative", "train_segment", "weak_mask", "aggregate", "retrain"),
    *("find_ticket", "pool_tickets"),
    *("train_member", "average_members", "choose_members", "train_subnetwork", "merge_subnetworks"),
    *("compare_masks", "evaluate", "describe", "plan", "collect", "compare_plan", "tables", "figures", "page"),
)
"""The stages in the order of the workflow."""
