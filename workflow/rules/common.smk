# Shared by all rules: the study, its DAG (isp/workflow/dag.py: paths, inputs, options), wildcards, and housekeeping of the run.

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


# A stage that receives SIGTERM saves a checkpoint, and its shell waits for that.
shell.prefix("set -euo pipefail; trap : TERM; ")


wildcard_constraints:
    **paths.WILDCARDS,
    study=study.study.replace(".", r"\."),


GPU = int(study.device != "cpu")
# The absolute path, with escaped braces because Snakemake would expand those in the path of a clone.
ENVIRONMENT = str(Path(workflow.basedir).parent / "environment.yml")
ENVIRONMENT = ENVIRONMENT.replace("{", "{{").replace("}", "}}")
