# Reports from the records. None of these rules imports torch.

import json

COLLECTED = {
    name: f"{paths.STUDY}/{name}.csv"
    for name in (
        *("metrics", "timings", "rounds", "layers"),
        *("agreement", "similarity", "similarity_layers"),
    )
}
TABLES = [
    f"{paths.STUDY}/tables/{name}.{suffix}"
    for name in ("scores", "costs", "similarity", "spending")
    for suffix in ("csv", "md")
]
TABLES += [
    f"{paths.STUDY}/tables/{name}"
    for name in (
        *("costs.txt", "statistics.csv", "statistics.md"),
        *("paper.csv", "paper.md", "paper.tex"),
    )
]
FIGURES = [
    f"{paths.STUDY}/figures/{{figure}}.{suffix}" for suffix in ("png", "pdf", "csv")
]

# The texts of the captions, so that an edit remakes the page but another folder does not.
CAPTIONS = json.dumps(
    {
        path.stem: path.read_text(encoding="utf-8")
        for path in sorted(Path(workflow.basedir, "report").glob("*.rst"))
    }
)
PAGE = f"{paths.STUDY}/report.html"


# The first job, because `isp status` reads its output while the study runs.
rule describe:
    output:
        paths.DESCRIPTION,
    log:
        f"{paths.STUDY}/logs/describe.log",
    priority: 100
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=0,
    params:
        version=dag.describe.version,
        study=dag.describe.settings,
        command=verbatim(COMMAND),
    message:
        "describing the study"
    shell:
        "isp describe {params.study} --command {params.command:q} --output {output} > {log} 2>&1"


# Before anything is trained, as soon as the lengths of texts are known.
rule plan:
    input:
        dag.prepared(),
    output:
        paths.PLAN,
    log:
        f"{paths.STUDY}/logs/plan.log",
    priority: 100
    conda:
        ENVIRONMENT
    threads: study.threads
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=GPU,
    params:
        version=dag.plan.version,
        study=dag.plan.settings,
    message:
        "planning the study"
    shell:
        'isp plan {params.study} --data-root "$ISP_DATA_ROOT" --calibrate --output {output} > {log} 2>&1'


rule compare_plan:
    input:
        records=dag.records(),
        plan=paths.PLAN,
        metrics=COLLECTED["metrics"],
    output:
        f"{paths.STUDY}/tables/plan.md",
    log:
        f"{paths.STUDY}/logs/compare_plan.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=0,
    params:
        version=dag.compare_plan.version,
        study=dag.compare_plan.settings,
    message:
        "comparing the plan with the run"
    shell:
        "isp compare_plan {params.study} --plan {input.plan} --metrics {input.metrics} --output {output} > {log} 2>&1"


rule collect:
    input:
        records=dag.records(),
        similarities=dag.similarities(),
    output:
        metrics=report(
            COLLECTED["metrics"],
            caption="../report/metrics.rst",
            category="Numbers",
            labels={"what": "scores, sparsity, steps, FLOPs", "form": "csv"},
        ),
        timings=report(
            COLLECTED["timings"],
            caption="../report/timings.rst",
            category="Numbers",
            labels={"what": "seconds, memory, device", "form": "csv"},
        ),
        rounds=COLLECTED["rounds"],
        layers=COLLECTED["layers"],
        agreement=COLLECTED["agreement"],
        similarity=COLLECTED["similarity"],
        similarity_layers=COLLECTED["similarity_layers"],
    log:
        f"{paths.STUDY}/logs/collect.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=0,
    params:
        version=dag.collect.version,
        runs=f"{paths.STUDY}/runs",
        cells=dag.collect.settings,
        similarities=verbatim(dag.repeated("similarity", dag.similarities())),
        folder=paths.STUDY,
    message:
        "collecting the records of all tickets and comparisons"
    shell:
        "isp collect --runs {params.runs} {params.cells} {params.similarities} --output {params.folder} > {log} 2>&1"


rule tables:
    input:
        metrics=COLLECTED["metrics"],
        timings=COLLECTED["timings"],
        rounds=COLLECTED["rounds"],
        layers=COLLECTED["layers"],
        similarity=COLLECTED["similarity"],
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
        report(
            TABLES[4],
            caption="../report/similarity.rst",
            category="Tables",
            labels={"what": "similarity of masks", "form": "csv"},
        ),
        TABLES[5],
        report(
            TABLES[6],
            caption="../report/spending.rst",
            category="Tables",
            labels={"what": "spent on finding and on retraining", "form": "csv"},
        ),
        TABLES[7],
        TABLES[8],
        report(
            TABLES[9],
            caption="../report/statistics.rst",
            category="Tables",
            labels={"what": "differences, intervals, ranks", "form": "csv"},
        ),
        TABLES[10],
        report(
            TABLES[11],
            caption="../report/paper.rst",
            category="Tables",
            labels={"what": "the paper's tables", "form": "csv"},
        ),
        TABLES[12],
        TABLES[13],
    log:
        f"{paths.STUDY}/logs/tables.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=0,
    params:
        version=dag.tables.version,
        reference=dag.tables.settings,
        folder=f"{paths.STUDY}/tables",
    message:
        "writing the tables"
    shell:
        "isp tables --metrics {input.metrics} --timings {input.timings} --rounds {input.rounds}"
        " --layers {input.layers} --similarity {input.similarity} {params.reference}"
        " --output {params.folder} > {log} 2>&1"


rule figures:
    input:
        metrics=COLLECTED["metrics"],
        rounds=COLLECTED["rounds"],
        layers=COLLECTED["layers"],
        agreement=COLLECTED["agreement"],
        similarity=COLLECTED["similarity"],
        similarity_layers=COLLECTED["similarity_layers"],
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
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=0,
    params:
        version=dag.figures.version,
        folder=f"{paths.STUDY}/figures",
    message:
        "drawing figure {wildcards.figure}"
    shell:
        "isp figures --figure {wildcards.figure} --metrics {input.metrics} --rounds {input.rounds}"
        " --layers {input.layers} --agreement {input.agreement} --similarity {input.similarity}"
        " --similarity-layers {input.similarity_layers} --output {params.folder} > {log} 2>&1"


rule page:
    input:
        paths.DESCRIPTION,
        COLLECTED.values(),
        TABLES,
        rules.compare_plan.output,
        expand(FIGURES, figure=reporting.FIGURES, allow_missing=True),
    output:
        PAGE,
    log:
        f"{paths.STUDY}/logs/page.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=0,
    params:
        version=dag.page.version,
        reference=dag.page.settings,
        captions=verbatim(CAPTIONS),
    message:
        "writing the page of the study"
    shell:
        "isp page {input:q} {params.reference} --captions {params.captions:q} --output {output} > {log} 2>&1"
