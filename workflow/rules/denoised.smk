# Instant Soup Pruning: alternately train a segment, and superpose the masks of look-ahead copies.


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


rule run_rounds:
    input:
        unpack(dag.run_rounds.inputs),
        data=paths.PREPARED.replace("{split}", "train"),
    output:
        temp(paths.ROUNDS_STATE),
    log:
        paths.log(paths.ROUNDS_STATE),
    wildcard_constraints:
        variant=dag.run_rounds.variants,
    conda:
        ENVIRONMENT
    threads: study.threads
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=GPU,
    params:
        version=dag.run_rounds.version,
        within=dag.within,
        rounds=dag.run_rounds.settings,
        run=dag.run,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: rounds {wildcards.first} to {wildcards.round}"
    shell:
        "isp run_rounds --start {input.start} {params.within} {params.rounds} --data {input.data} {params.run}"
        " --output {output} > {log} 2>&1"


rule prune_denoised:
    input:
        unpack(dag.prune_denoised.inputs),
        data=paths.PREPARED.replace("{split}", "train"),
    output:
        paths.ROUND_MASK,
    log:
        paths.log(paths.ROUND_MASK),
    wildcard_constraints:
        variant=dag.prune_denoised.variants,
    conda:
        ENVIRONMENT
    # Not a param, so that another choice causes no reruns: sequential and parallel copies give the same bits.
    threads: cores_of_copies(workflow, dag)
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=GPU,
    params:
        version=dag.prune_denoised.version,
        within=dag.within,
        settings=dag.prune_denoised.settings,
        run=dag.run,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: round {wildcards.round}, mask at {wildcards.sparsity}"
    shell:
        "isp prune_denoised --state {input.state} {params.within} --round {wildcards.round}"
        " --sparsity {wildcards.sparsity} {params.settings} --data {input.data} {params.run}"
        " --cores {threads} --output {output} > {log} 2>&1"
