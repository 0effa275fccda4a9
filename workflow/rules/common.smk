# What all rules share: the study, its DAG (isp/dag.py: paths, inputs, options), wildcards, the run's own housekeeping.

from pathlib import Path

from isp import dag as paths
from isp import reporting
from isp.dag import Dag
from isp.resources import Requests
from isp.running import by_file, command, limits_jobs, load, start, verbatim

study = load(workflow, config)
dag = Dag(study, shorten=by_file)
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
