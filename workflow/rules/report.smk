# From records to what people read. None of this imports torch.

COLLECTED = [
    f"{paths.STUDY}/{name}.csv" for name in ("metrics", "timings", "rounds", "layers")
]
TABLES = [
    f"{paths.STUDY}/tables/{name}.{suffix}"
    for name in ("scores", "costs")
    for suffix in ("csv", "md")
]
TABLES.append(f"{paths.STUDY}/tables/costs.txt")
FIGURES = [
    f"{paths.STUDY}/figures/{{figure}}.{suffix}" for suffix in ("png", "pdf", "csv")
]


rule collect:
    input:
        dag.records(),
    output:
        metrics=report(
            COLLECTED[0],
            caption="../report/metrics.rst",
            category="Numbers",
            labels={"what": "scores, sparsity, steps, FLOPs", "form": "csv"},
        ),
        timings=report(
            COLLECTED[1],
            caption="../report/timings.rst",
            category="Numbers",
            labels={"what": "seconds, memory, device", "form": "csv"},
        ),
        rounds=COLLECTED[2],
        layers=COLLECTED[3],
    log:
        f"{paths.STUDY}/logs/collect.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
        gpu=0,
    params:
        version=dag.versions("collect"),
        runs=f"{paths.STUDY}/runs",
        cells=dag.cells(),
        folder=paths.STUDY,
    message:
        "collecting the records of all tickets"
    shell:
        "isp collect --runs {params.runs} {params.cells} --output {params.folder} > {log} 2>&1"


rule tables:
    input:
        metrics=COLLECTED[0],
        timings=COLLECTED[1],
        rounds=COLLECTED[2],
    output:
        report(
            TABLES[0],
            caption="../report/scores.rst",
            category="Tables",
            labels={"what": "scores by sparsity", "form": "csv"},
        ),
        TABLES[1],
        report(
            TABLES[2],
            caption="../report/costs.rst",
            category="Tables",
            labels={"what": "scores and costs", "form": "csv"},
        ),
        TABLES[3],
        TABLES[4],
    log:
        f"{paths.STUDY}/logs/tables.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
        gpu=0,
    params:
        version=dag.versions("tables"),
        folder=f"{paths.STUDY}/tables",
    message:
        "tables"
    shell:
        "isp tables --metrics {input.metrics} --timings {input.timings} --rounds {input.rounds}"
        " --output {params.folder} > {log} 2>&1"


rule figures:
    input:
        metrics=COLLECTED[0],
        rounds=COLLECTED[2],
        layers=COLLECTED[3],
    output:
        report(
            FIGURES[0],
            caption="../report/figures.rst",
            category="Figures",
            labels={"figure": "{figure}", "form": "png"},
        ),
        FIGURES[1],
        report(
            FIGURES[2],
            caption="../report/figures.rst",
            category="Figures",
            labels={"figure": "{figure}", "form": "csv"},
        ),
    log:
        f"{paths.STUDY}/logs/figures/{{figure}}.log",
    wildcard_constraints:
        figure="|".join(reporting.FIGURES),
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
        gpu=0,
    params:
        version=dag.versions("figures"),
        folder=f"{paths.STUDY}/figures",
    message:
        "figure {wildcards.figure}"
    shell:
        "isp figures --figure {wildcards.figure} --metrics {input.metrics} --rounds {input.rounds}"
        " --layers {input.layers} --output {params.folder} > {log} 2>&1"
