"""From records to what people read: one job each a study."""

from __future__ import annotations

from isp.reporting import FIGURES
from isp.workflow import paths
from isp.workflow.dag import Dag
from isp.workflow.paths import Wildcards
from isp.workflow.rule import Rule


def _described(dag: Dag, _: Wildcards) -> str:
    """The study as its file says it, but for where data lie."""
    return dag.options(study=dag.study.model_dump(mode="json", exclude={"data_root"}, exclude_unset=True))


def _cells(dag: Dag, _: Wildcards) -> str:
    """The blocks of the grid with the sparsities of each variant, in the order of the study."""
    blocks = []
    for block in dag.study.grid:
        of_block = dag.study.model_copy(update={"grid": [block]}).groups()
        sparsities = {group.variant: [str(value) for value in group.sparsities] for group in of_block}
        keys = {"backbone": block.backbone, "tasks": block.tasks, "seeds": block.seeds}
        blocks.append({**keys, "variants": sparsities})
    return dag.options(cells=blocks)


def _reference(dag: Dag, _: Wildcards) -> str:
    """The variant that the others are compared with."""
    return dag.options(reference=dag.study.reference_variant())


DESCRIBE = Rule(name="describe", output=paths.DESCRIPTION, settings=_described, count=lambda study: 1)
PLAN = Rule(
    name="plan",
    output=paths.PLAN,
    settings=_described,
    count=lambda study: 1,
    memory_of="finetune_dense",  # it trains every model for some steps, one after another
)
COMPARE_PLAN = Rule(name="compare_plan", settings=_described, count=lambda study: 1)
COLLECT = Rule(name="collect", settings=_cells, count=lambda study: 1)
TABLES = Rule(name="tables", settings=_reference, count=lambda study: 1)
FIGURE = Rule(name="figures", count=lambda study: len(FIGURES))
PAGE = Rule(name="page", settings=_reference, count=lambda study: 1)
