# Iterative magnitude pruning: each round prunes the previous round's ticket, and `retrain` trains the next. Pooled tickets
# interpolate the tickets of the rounds.


rule train_to_rewind_point:
    input:
        unpack(dag.train_to_rewind_point.inputs),
        data=paths.PREPARED.replace("{split}", "train"),
    output:
        temp(paths.REWIND_POINT),
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
        version=dag.train_to_rewind_point.version,
        run=dag.run,
    message:
        "{wildcards.task}, seed {wildcards.seed}: dense fine-tuning to step {wildcards.step} ({wildcards.initial})"
    shell:
        "isp train_segment --start {input.start} --until {wildcards.step} --data {input.data} {params.run}"
        " --output {output} > {log} 2>&1"


rule prune_iterative:
    input:
        unpack(dag.prune_iterative.inputs),
    output:
        paths.ROUND_MASK,
    log:
        paths.log(paths.ROUND_MASK),
    wildcard_constraints:
        variant=dag.prune_iterative.variants,
    priority: 1
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=0,
    params:
        version=dag.prune_iterative.version,
        scope=dag.prune_iterative.settings,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: round {wildcards.round}, mask at {wildcards.sparsity}"
    shell:
        "isp prune_iterative --ticket {input} --round {wildcards.round} --sparsity {wildcards.sparsity}"
        " {params.scope} --output {output} > {log} 2>&1"


rule pool_tickets:
    input:
        unpack(dag.pool_tickets.inputs),
        validation=paths.PREPARED.replace("{split}", "validation"),
    output:
        paths.TICKET,
    log:
        paths.log(paths.TICKET),
    wildcard_constraints:
        variant=dag.pool_tickets.variants,
    conda:
        ENVIRONMENT
    threads: study.threads
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=GPU,
    params:
        version=dag.pool_tickets.version,
        candidates=lambda w, input: dag.repeated("candidate", input.candidates),
        method=dag.pool_tickets.settings,
        scoring=dag.scoring,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: pooling at {wildcards.sparsity}"
    shell:
        "isp pool_tickets --ticket {input.ticket} {params.candidates} {params.method} --validation {input.validation}"
        " {params.scoring} --output {output} > {log} 2>&1"
