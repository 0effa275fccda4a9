# What all rules share: the study, its DAG (isp/workflow/dag.py: paths, inputs, options), wildcards, the run's own housekeeping.

from pathlib import Path

from isp.workflow import paths
from isp import reporting
from isp.workflow.resources import Requests
from isp.workflow.rules import make_dag
from isp.workflow.running import (
    by_file,
    command,
    cores_of_copies,
    limits_jobs,
    load,
    start,
    verbatim,
)

study = load(workflow, config)
dag = make_dag(study, shorten=by_file)
requests = Requests(study, asked=limits_jobs(workflow))
COMMAND = command(workflow)


# A stage that is told to end saves how far it is; its shell waits for that.
shell.prefix("set -euo pipefail; trap : TERM; ")


wildcard_constraints:
    **paths.WILDCARDS,
    study=study.study.replace(".", r"\."),


GPU = int(study.device != "cpu")
# Whole, for Snakemake expands braces in it, also those in the path of a clone.
ENVIRONMENT = str(Path(workflow.basedir).parent / "environment.yml")
ENVIRONMENT = ENVIRONMENT.replace("{", "{{").replace("}", "}}")
