# Iterative magnitude pruning: each round prunes the ticket of the round before; `retrain` trains the next. Pooled tickets
# are interpolations of those of the rounds.


rule train_to_rewind_point:
    input:
        start=paths.INITIAL,
        data=paths.PREPARED.replace("{split}", "train"),
    output:
        paths.REWIND_POINT,
    log:
        paths.log(paths.REWIND_POINT),
    conda:
        ENVIRONMENT
    threads: study.threads
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=GPU,
    params:
        version=lambda w: dag.versions("train_segment", w),
        run=dag.run,
    message:
        "{wildcards.task}, seed {wildcards.seed}: dense fine-tuning to step {wildcards.step} ({wildcards.initial})"
    shell:
        "isp train_segment --start {input.start} --until {wildcards.step} --data {input.data} {params.run}"
        " --output {output} > {log} 2>&1"


rule prune_iterative:
    input:
        dag.previous_ticket,
    output:
        paths.ROUND_MASK,
    log:
        paths.log(paths.ROUND_MASK),
    wildcard_constraints:
        variant=dag.variants("iterative"),
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=0,
    params:
        version=lambda w: dag.versions("prune_iterative", w),
        scope=dag.scope,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: round {wildcards.round}, mask at {wildcards.sparsity}"
    shell:
        "isp prune_iterative --ticket {input} --round {wildcards.round} --sparsity {wildcards.sparsity}"
        " {params.scope} --output {output} > {log} 2>&1"


rule pool_tickets:
    input:
        unpack(dag.pooling),
        validation=paths.PREPARED.replace("{split}", "validation"),
    output:
        paths.TICKET,
    log:
        paths.log(paths.TICKET),
    wildcard_constraints:
        variant=dag.variants("pooled"),
    conda:
        ENVIRONMENT
    threads: study.threads
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=GPU,
    params:
        version=lambda w: dag.versions("pool_tickets", w),
        candidates=lambda w, input: dag.repeated("candidate", input.candidates),
        method=dag.settings,
        scoring=dag.scoring,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: pooling at {wildcards.sparsity}"
    shell:
        "isp pool_tickets --ticket {input.ticket} {params.candidates} {params.method} --validation {input.validation}"
        " {params.scoring} --output {output} > {log} 2>&1"
