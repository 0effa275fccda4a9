"""Readable plan of a study, and its comparison with the measurements of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isp.reporting import tabular
from isp.reporting.tables import Table, si, text
from isp.reporting.tabular import Row

COMPARISON_LEGEND = (
    "The plan from before the run, and the measurements of the run. Times are totals over all jobs without start-up. "
    "Parallel jobs slow each other down, which the plan's calibration covers only in part. Steps and FLOP are those "
    "of a variant's tickets, each on its own, without evaluation; they are upper bounds if the number of rounds "
    "depends on measured sparsity. With another `look_aheads`, rounds are run by jobs of other rules than planned."
)


def lines(plan: Mapping[str, Any]) -> str:
    """Return the plan as text: by rule and by variant, with hours and disk space."""
    unit, length = _unit(plan)
    rules: list[list[str]] = [_cells(row["rule"], row, length) for row in plan["rules"]]
    rules += [[name, f"{count:,}", "", "", "", ""] for name, count in plan["shared_jobs"].items() if count]
    total = plan["total"]
    rules.append(["all", f"{total['all_jobs']:,}", *_cells("", total, length)[2:]])
    variants = [
        [
            f"{row['variant']} on {row['backbone']}",
            f"{row['tickets']:,}",
            f"{row['jobs']:,}",
            f"{row['steps']:,}",
            si(row["flops"]),
            f"{row['seconds'] / length:,.2f}",
            _share(row["seconds"], row["seconds_alone"]),
        ]
        for row in plan["variants"]
    ]
    tables = [
        (["rule", "jobs", "steps", "FLOP", unit, "overhead"], rules),
        (["variant", "tickets", "jobs", "steps", "FLOP", unit, "saved by sharing"], variants),
    ]
    return text(tables, *_notes(plan))


def comparison(plan: Mapping[str, Any], seconds: Mapping[str, Sequence[float]], metrics: Sequence[Row]) -> list[Table]:
    """Return tables of planned and actual values: jobs and hours by rule, steps and FLOPs of tickets by variant.

    Args:
        plan: Plan from the plan stage.
        seconds: Durations of jobs by rule, from their logs.
        metrics: Rows of `collect.metrics`.
    """
    rules, (unit, length) = [], _unit(plan)
    unplanned = [
        {"rule": rule, "jobs": 0, "seconds": 0.0}
        for rule in sorted(seconds.keys() - {row["rule"] for row in plan["rules"]})
    ]
    for row in [*plan["rules"], *unplanned, {"rule": "all", **plan["total"]}]:
        took = (
            [each for of_rule in seconds.values() for each in of_rule] if row["rule"] == "all" else seconds[row["rule"]]
        )
        planned = row["seconds"] - row.get("start_seconds", 0.0)  # plans of earlier versions have no starts
        times = [f"{seconds_ / length:,.2f}" for seconds_ in (planned, sum(took))]
        counts = [f"{row['jobs']:,}", f"{len(took):,}"]
        rules.append([row["rule"], *counts, *times, _ratio(sum(took), planned)])
    variants = []
    tickets = tabular.group(metrics, "backbone", "variant")
    for row in plan["variants"]:
        of_variant = tickets[row["backbone"], row["variant"]]
        totals = [sum(tabular.numbers(of_variant, f"finding_{key}", f"retraining_{key}")) for key in ("steps", "flops")]
        steps = [f"{row['steps_alone']:,}", f"{totals[0]:,.0f}"]
        flops = [si(row["flops_alone"]), si(totals[1]), _ratio(totals[1], row["flops_alone"])]
        variants.append([f"{row['variant']} on {row['backbone']}", *steps, *flops])
    return [
        (["rule", "jobs planned", "jobs run", f"{unit} planned", f"{unit} taken", "taken / planned"], rules),
        (["variant", "steps planned", "steps taken", "FLOP planned", "FLOP executed", "executed / planned"], variants),
    ]


def _unit(plan: Mapping[str, Any]) -> tuple[str, int]:
    """Return the unit of times and its seconds: minutes if all jobs take less than ten hours in total."""
    return ("minutes", 60) if plan["total"]["seconds"] < 36_000 else ("hours", 3600)


def _ratio(taken: float, planned: float) -> str:
    return f"{taken / planned:.2f}" if planned else ""


def _cells(name: str, row: Mapping[str, Any], length: int) -> list[str]:
    return [
        name,
        f"{row['jobs']:,}",
        f"{row['steps']:,}" if row["steps"] else "",
        si(row["flops"]),
        f"{row['seconds'] / length:,.2f}",
        f"{row['overhead_seconds'] / row['seconds']:.0%}" if row["seconds"] else "",
    ]


def _notes(plan: Mapping[str, Any]) -> list[str]:
    without, disk, total = plan["without_sharing"], plan["disk"], plan["total"]
    saved = _share(plan["with_sharing"]["seconds"], without["seconds"])
    rate = plan["throughput"]
    how = f"at {si(rate)} FLOP per second" if rate else f"by steps timed on this machine ({plan['device']})"
    parallel = plan["parallel"]
    side = f"{parallel} parallel jobs" if parallel > 1 else "one job at a time"
    found = [
        f"{plan['study']}: {total['all_jobs']:,} jobs, {total['steps']:,} training steps, {si(total['flops'])} FLOP; "
        f"{plan['hours']:,.2f} hours {how}, {plan['wall_hours']:,.2f} with {side}.",
        f"Without sharing between tickets: {without['steps']:,} steps, {si(without['flops'])} FLOP, "
        f"{without['seconds'] / 3600:,.2f} hours; sharing saves {saved}.",
        *_disk(disk),
        "The jobs and hours of a variant include everything that its tickets need except evaluation, even if variants "
        "share it. If the number of rounds depends on measured sparsity, steps are an upper bound. Downloads, "
        "pre-training and preparation, which studies share, are counted as jobs only.",
    ]
    if "starts" in plan:
        found.append(_starts(plan))
    elif total["overhead_seconds"]:
        here = total["overhead_seconds"]
        found.append(
            f"Of the hours, {here / 3600:,.2f} ({here / total['seconds']:.0%}) are overhead: starts, reading and "
            f"writing, with the same seconds assumed for every job. --calibrate measures it on this machine, where it "
            f"is often far less."
        )
    if total["selections"]:
        found.append(
            f"Runs that prune during training select {total['selections']:,} masks, which takes "
            f"{plan['selection_hours']:,.2f} of the hours."
        )
    if plan["unknown_lengths"]:
        names = ", ".join(plan["unknown_lengths"])
        found.append(f"Texts that are not prepared yet are assumed to have the maximum length: {names}.")
    return found


def _starts(plan: Mapping[str, Any]) -> str:
    """Return the measured start times, and the fraction of overhead on this machine and on a cluster."""
    names = {
        "warm": "a stage through the fork server",
        "cold": "a stage in a fresh process",
        "snakemake_job": "Snakemake's overhead per job",
        "snakemake_start": "a start of Snakemake",
    }
    starts, total = plan["starts"], plan["total"]
    parts = [f"{name} {starts[key]:.2f} s" for key, name in names.items() if starts[key] is not None]
    here, cluster = total["overhead_seconds"], starts["overhead_seconds_on_cluster"]
    beside = [
        f"building {backbone} {took['build']:.2f} s, ranking it {took['ranking']:.2f} s, reading it "
        f"{1e9 * took['read']:.2f} s per GB, writing it {1e9 * took['write']:.2f} s per GB, each value under a mask "
        f"{1e9 * took.get('expand', 0.0):.2f} ns more to read and {1e9 * took.get('compress', 0.0):.2f} ns to write"
        for backbone, took in starts["backbones"].items()
    ]
    text = f"Measured on this machine: {', '.join(parts)}; {'; '.join(beside)}. "
    text += f"The overhead is {here / 3600:,.2f} hours, {here / total['seconds']:.1%}"
    if cluster is not None:
        share = cluster / (total["seconds"] - here + cluster)
        text += (
            f"; on a cluster without groups (every stage in a fresh process, and two starts of Snakemake per job), it "
            f"is {cluster / 3600:,.2f} hours, {share:.1%}"
        )
    return f"{text}."


KEPT = {"ticket": "tickets that are results", "mask": "masks", "state": "initial states"}
"""What a plan calls the files that stay, by kind."""
TEMPORARY = {
    "state": "states between rounds",
    "weights": "weak subnetworks",
    "ticket": "tickets that are not results",
}
"""What a plan calls the files that are deleted when no job needs them any more, by kind."""


def _disk(disk: Mapping[str, Any]) -> list[str]:
    """Return the disk usage of permanent and temporary files, and the peak."""
    kept = f"Disk: {si(disk['kept'])}B are kept{_kinds(KEPT, disk['kept_by_kind'])}."
    if not disk["temporary"]:
        return [kept]
    return [
        f"{kept} Temporary files add up to {si(disk['temporary'])}B"
        f"{_kinds(TEMPORARY, disk['temporary_by_kind'])}; the default profile keeps them (`notemp`). If they are "
        f"deleted as soon as no job needs them, a chain of rounds or a soup has at most {si(disk['chain'])}B of them "
        f"at a time, and the peak usage is {si(disk['peak'])}B."
    ]


def _kinds(names: Mapping[str, str], sizes: Mapping[str, int]) -> str:
    parts = [f"{names[kind]} {si(size)}B" for kind, size in sorted(sizes.items(), key=lambda each: -each[1])]
    return f" ({', '.join(parts)})" if parts else ""


def _share(together: float, apart: float) -> str:
    return f"{1 - together / apart:.0%}" if apart else ""
