"""Number of jobs in a cluster's queue for a study, with and without the groups of the Slurm profile.

    python benchmarks/queue_entries.py config/paper.yaml

A group is one entry if its jobs are connected. Jobs that run on the head node (localrules) and those in `resources/`
are not counted.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import yaml

from isp.config import load_study
from isp.workflow.jobs import Job, Jobs

PROFILE = Path(__file__).parent.parent / "workflow" / "profiles" / "slurm" / "config.yaml"


def entries(jobs: Jobs, groups: dict[str, str]) -> Counter[str]:
    """Count entries by the rules that share one."""
    key = {output: _group(job, groups) for output, job in jobs.by_output.items()}
    root = {output: output for output in jobs.by_output}

    def find(output: str) -> str:
        while root[output] != output:
            output = root[output]
        return output

    for output, job in jobs.by_output.items():
        for needed in job.inputs:
            if key[output] is not None and key[needed] == key[output]:
                root[find(needed)] = find(output)
    rules: dict[str, set[str]] = {}
    for output, job in jobs.by_output.items():
        rules.setdefault(find(output), set()).add(job.rule)
    return Counter(" + ".join(sorted(each)) for each in rules.values())


def _group(job: Job, groups: dict[str, str]) -> str | None:
    pattern = groups.get(job.rule)
    if pattern is None:
        return None
    *_, backbone, task, seed, variant = job.output.split("/")[:7]
    rest = job.output.split("/")[7:]
    round_ = rest[0].removeprefix("round").rpartition("-")[2] if rest[0].startswith("round") else ""
    sparsity = next((part.removeprefix("to") for part in rest if part.removeprefix("to").startswith("0.")), "")
    return pattern.format(backbone=backbone, task=task, seed=seed, variant=variant, round=round_, sparsity=sparsity)


def main() -> None:
    """Print both counts."""
    jobs = Jobs(load_study(Path(sys.argv[1])))
    groups = yaml.safe_load(PROFILE.read_text(encoding="utf-8"))["groups"]
    together = entries(jobs, groups)
    print(f"{jobs.study.study}: {len(jobs.by_output):,} jobs")
    print(f"without groups: {len(jobs.by_output):,} entries; with groups: {together.total():,}")
    for rules, count in together.most_common():
        print(f"  {count:6,}  {rules}")
    alone = entries(jobs, {rule: group for rule, group in groups.items() if not group.startswith("round.")})
    print(f"with groups, but not of rounds: {alone.total():,}")


if __name__ == "__main__":
    main()
