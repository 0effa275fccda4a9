"""A study's plan for people, and beside it what a run took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isp.reporting import tabular
from isp.reporting.tables import Table, si, text
from isp.reporting.tabular import Row

COMPARISON_LEGEND = (
    "The plan that was made before the run beside what the run took. Times are those of all jobs, one after the other, "
    "start-up left out; where jobs run side by side they slow one another down, which the plan's "
    "calibration sees only in part. "
    "steps, FLOP: of a variant's tickets, each by itself, without its evaluation; at most, where the number of rounds "
    "follows from measured sparsity."
)


def lines(plan: Mapping[str, Any]) -> str:
    """The plan as text: by rule, by variant, and what it means in hours and on disk."""
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
    """What was planned beside what was: by rule jobs and hours, by variant the steps and FLOPs of its tickets.

    Args:
        plan: from the plan stage.
        seconds: by rule those of its jobs, from their logs.
        metrics: rows of `collect.metrics`.
    """
    rules, (unit, length) = [], _unit(plan)
    for row in [*plan["rules"], {"rule": "all", **plan["total"]}]:
        took = [each for own in seconds.values() for each in own] if row["rule"] == "all" else seconds[row["rule"]]
        planned = row["seconds"] - row.get("start_seconds", 0.0)  # plans of earlier versions have no starts
        times = [f"{seconds_ / length:,.2f}" for seconds_ in (planned, sum(took))]
        counts = [f"{row['jobs']:,}", f"{len(took):,}"]
        rules.append([row["rule"], *counts, *times, _ratio(sum(took), planned)])
    variants = []
    tickets = tabular.group(metrics, "backbone", "variant")
    for row in plan["variants"]:
        own = tickets[row["backbone"], row["variant"]]
        spent = [sum(tabular.numbers(own, f"finding_{key}", f"retraining_{key}")) for key in ("steps", "flops")]
        steps = [f"{row['steps_alone']:,}", f"{spent[0]:,.0f}"]
        flops = [si(row["flops_alone"]), si(spent[1]), _ratio(spent[1], row["flops_alone"])]
        variants.append([f"{row['variant']} on {row['backbone']}", *steps, *flops])
    return [
        (["rule", "jobs planned", "jobs run", f"{unit} planned", f"{unit} taken", "taken / planned"], rules),
        (["variant", "steps planned", "steps taken", "FLOP planned", "FLOP executed", "executed / planned"], variants),
    ]


def _unit(plan: Mapping[str, Any]) -> tuple[str, int]:
    """What times are told in, and its seconds: minutes where all jobs together take less than ten hours."""
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
    how = f"at {si(rate)} FLOP a second" if rate else f"by steps timed here, on {plan['device']}"
    parallel = plan["parallel"]
    side = f"{parallel} jobs side by side" if parallel > 1 else "one job at a time"
    found = [
        f"{plan['study']}: {total['all_jobs']:,} jobs, {total['steps']:,} training steps, {si(total['flops'])} FLOP; "
        f"{plan['hours']:,.2f} hours {how}, {plan['wall_hours']:,.2f} with {side}.",
        f"Each ticket made by itself: {without['steps']:,} steps, {si(without['flops'])} FLOP, "
        f"{without['seconds'] / 3600:,.2f} hours; sharing saves {saved} of it.",
        *_disk(disk),
        "A variant's jobs and hours are all that its tickets need but evaluation, also what variants share. Steps of "
        "rounds that follow from measured sparsity are the most there may be. Downloads, pre-training and preparation "
        "are counted as jobs only: studies share them.",
    ]
    if "starts" in plan:
        found.append(_starts(plan))
    if total["selections"]:
        found.append(
            f"Runs that prune on their way select {total['selections']:,} masks, which takes "
            f"{plan['selection_hours']:,.2f} of the hours."
        )
    if plan["unknown_lengths"]:
        names = ", ".join(plan["unknown_lengths"])
        found.append(f"Texts that are not prepared yet are taken for the longest, an upper bound: {names}.")
    return found


def _starts(plan: Mapping[str, Any]) -> str:
    """What starts take as measured, and the share of overhead here and on a cluster."""
    names = {
        "warm": "a stage through the fork server",
        "cold": "a stage in a process of its own",
        "snakemake_job": "Snakemake's part in a job",
        "snakemake_start": "a start of Snakemake",
    }
    starts, total = plan["starts"], plan["total"]
    parts = [f"{name} {starts[key]:.2f} s" for key, name in names.items() if starts[key] is not None]
    here, cluster = total["overhead_seconds"], starts["overhead_seconds_on_cluster"]
    beside = [
        f"{backbone} is built in {took['build']:.2f} s and ranked in {took['ranking']:.2f} s, a GB of it read in "
        f"{1e9 * took['read']:.2f} s and written in {1e9 * took['write']:.2f} s"
        for backbone, took in starts["backbones"].items()
    ]
    text = f"Measured here: {', '.join(parts)}; {'; '.join(beside)}. "
    text += f"So overhead is {here / 3600:,.2f} hours, {here / total['seconds']:.1%}"
    if cluster is not None:
        share = cluster / (total["seconds"] - here + cluster)
        text += (
            f"; on a cluster, were every job an entry of its own (cold, and two starts of Snakemake), "
            f"{cluster / 3600:,.2f} hours, {share:.1%}"
        )
    return f"{text}."


_KEPT = {"ticket": "tickets that are results", "mask": "masks", "state": "initial states"}
_TEMPORARY = {
    "state": "states between rounds",
    "weights": "weak subnetworks",
    "ticket": "tickets that are no result",
}


def _disk(disk: Mapping[str, Any]) -> list[str]:
    """What stays, what is only in between, and how much lies there at a time."""
    kept = f"Disk: {si(disk['kept'])}B stay{_kinds(_KEPT, disk['kept_by_kind'])}."
    if not disk["temporary"]:
        return [kept]
    return [
        f"{kept} Temporary files are {si(disk['temporary'])}B, all that are ever written"
        f"{_kinds(_TEMPORARY, disk['temporary_by_kind'])}; the default profile keeps them (`notemp`). Where they are "
        f"deleted as soon as nothing needs them, a chain of rounds or a soup has at most {si(disk['chain'])}B of them "
        f"at a time, and the most that lies there is {si(disk['peak'])}B."
    ]


def _kinds(names: Mapping[str, str], sizes: Mapping[str, int]) -> str:
    parts = [f"{names[kind]} {si(size)}B" for kind, size in sorted(sizes.items(), key=lambda each: -each[1])]
    return f" ({', '.join(parts)})" if parts else ""


def _share(together: float, apart: float) -> str:
    return f"{1 - together / apart:.0%}" if apart else ""
