# The common start of all runs of a seed: the initial state and the dense run.


rule initialise:
    input:
        weights=paths.WEIGHTS,
        data=paths.PREPARED.replace("{split}", "train"),
    output:
        paths.INITIAL,
    log:
        paths.log(paths.INITIAL),
    conda:
        ENVIRONMENT
    threads: study.threads
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=GPU,
    params:
        version=dag.initialise.version,
        run=dag.run,
    message:
        "{wildcards.task}, seed {wildcards.seed}: initial state ({wildcards.initial})"
    shell:
        "isp initialise --weights {input.weights} --data {input.data} --initial {wildcards.initial} {params.run}"
        " --output {output} > {log} 2>&1"


rule finetune_dense:
    input:
        unpack(dag.finetune_dense.inputs),
        data=paths.PREPARED.replace("{split}", "train"),
    output:
        paths.DENSE,
    log:
        paths.log(paths.DENSE),
    priority: 1  # lottery tickets, whose chains are the longest, start here; see `retrain`
    conda:
        ENVIRONMENT
    threads: study.threads
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=GPU,
    params:
        version=dag.finetune_dense.version,
        run=dag.run,
    message:
        "{wildcards.task}, seed {wildcards.seed}: dense fine-tuning ({wildcards.initial})"
    shell:
        "isp finetune_dense --initial {input.initial} --data {input.data} {params.run} --output {output} > {log} 2>&1"
