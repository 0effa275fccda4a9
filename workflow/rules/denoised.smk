# Instant Soup Pruning: a segment of training, look-ahead copies side by side, their masks superposed into one, and on.


rule train_segment:
    input:
        unpack(dag.train_segment.inputs),
        data=paths.PREPARED.replace("{split}", "train"),
    output:
        temp(paths.STATE),
    log:
        paths.log(paths.STATE),
    wildcard_constraints:
        variant=dag.train_segment.variants,
    conda:
        ENVIRONMENT
    threads: study.threads
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=GPU,
    params:
        version=dag.train_segment.version,
        within=dag.within,
        until=dag.train_segment.settings,
        run=dag.run,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: round {wildcards.round}, segment"
    shell:
        "isp train_segment --start {input.start} {params.within} --until {params.until} --data {input.data}"
        " {params.run} --output {output} > {log} 2>&1"


rule weak_mask:
    input:
        unpack(dag.weak_mask.inputs),
        data=paths.PREPARED.replace("{split}", "train"),
    output:
        temp(paths.WEAK),
    log:
        paths.log(paths.WEAK),
    wildcard_constraints:
        variant=dag.weak_mask.variants,
    conda:
        ENVIRONMENT
    threads: study.threads
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=GPU,
    params:
        version=dag.weak_mask.version,
        within=dag.within,
        settings=dag.weak_mask.settings,
        run=dag.run,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: round {wildcards.round}, look-ahead {wildcards.member}"
    shell:
        "isp weak_mask --state {input.state} {params.within} --round {wildcards.round} --member {wildcards.member}"
        " --sparsity {wildcards.sparsity} {params.settings} --data {input.data} {params.run}"
        " --output {output} > {log} 2>&1"


rule aggregate:
    input:
        unpack(dag.aggregate.inputs),
    output:
        paths.ROUND_MASK,
    log:
        paths.log(paths.ROUND_MASK),
    wildcard_constraints:
        variant=dag.aggregate.variants,
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=0,
    params:
        version=dag.aggregate.version,
        within=dag.within,
        weak=lambda w, input: dag.repeated("weak", input.get("weak", [])),
        rule=dag.aggregate.settings,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: round {wildcards.round}, mask at {wildcards.sparsity}"
    shell:
        "isp aggregate --state {input.state} {params.within} {params.weak} {params.rule} --round {wildcards.round}"
        " --sparsity {wildcards.sparsity} --output {output} > {log} 2>&1"
