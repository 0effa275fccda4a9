"""Rules for reports from the records, with one job per study each."""

from __future__ import annotations

from isp.config import Study
from isp.reporting import FIGURES
from isp.workflow import paths
from isp.workflow.dag import Dag
from isp.workflow.paths import Wildcards
from isp.workflow.rule import Rule


def _described(dag: Dag, _: Wildcards) -> str:
    """Format the option for the study, without the settings that do not affect results: data_root and look_aheads."""
    return dag.options(
        study=dag.study.model_dump(mode="json", exclude={"data_root", "look_aheads"}, exclude_unset=True)
    )


def _described_by_jobs(dag: Dag, w: Wildcards) -> str:
    """Format the same, with the instruction set of the study's jobs, so that the provenance equals theirs."""
    kernels = {"instruction-set": dag.study.served_instructions}
    return " ".join(filter(None, [_described(dag, w), dag.options(**kernels)]))


def _cells(dag: Dag, _: Wildcards) -> str:
    """Format the blocks of the grid with the sparsities of each variant, in the order of the study."""
    blocks = []
    for block in dag.study.grid:
        of_block = dag.study.model_copy(update={"grid": [block]}).groups()
        sparsities = {group.variant: [str(value) for value in group.sparsities] for group in of_block}
        keys = {"backbone": block.backbone, "tasks": block.tasks, "seeds": block.seeds}
        blocks.append({**keys, "variants": sparsities})
    return dag.options(cells=blocks)


def _reference(dag: Dag, _: Wildcards) -> str:
    """Format the option for the variant with which the others are compared."""
    return dag.options(reference=dag.study.reference_variant())


def _once(study: Study) -> list[dict[str, str]]:
    return [{}]


def _log(rule: str) -> str:
    return f"{paths.STUDY}/logs/{rule}.log"


DESCRIBE = Rule(
    name="describe", output=paths.DESCRIPTION, settings=_described_by_jobs, jobs=_once, log=_log("describe")
)
PLAN = Rule(
    name="plan",
    output=paths.PLAN,
    settings=_described,
    jobs=_once,
    log=_log("plan"),
    memory_of="finetune_dense",  # it trains every model for a few steps, one after another
)
COLLECT = Rule(name="collect", settings=_cells, jobs=_once, log=_log("collect"))
COMPARE_PLAN = Rule(name="compare_plan", settings=_described, jobs=_once, log=_log("compare_plan"))
TABLES = Rule(name="tables", settings=_reference, jobs=_once, log=_log("tables"))
FIGURE = Rule(name="figures", jobs=lambda study: [{"figure": name} for name in FIGURES], log=_log("figures/{figure}"))
PAGE = Rule(name="page", settings=_reference, jobs=_once, log=_log("page"))
