# Instant Soup Pruning: a segment of training, look-ahead copies side by side, their masks superposed into one, and on.


rule train_segment:
    input:
        unpack(dag.segment),
        data=paths.PREPARED.replace("{split}", "train"),
    output:
        temp(paths.STATE),
    log:
        paths.log(paths.STATE),
    wildcard_constraints:
        variant=dag.variants("denoised"),
    conda:
        ENVIRONMENT
    threads: study.threads
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=GPU,
    params:
        version=lambda w: dag.versions("train_segment", w),
        within=dag.within,
        until=dag.until,
        run=dag.run,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: round {wildcards.round}, segment"
    shell:
        "isp train_segment --start {input.start} {params.within} --until {params.until} --data {input.data}"
        " {params.run} --output {output} > {log} 2>&1"


rule weak_mask:
    input:
        unpack(dag.look_ahead),
        data=paths.PREPARED.replace("{split}", "train"),
    output:
        temp(paths.WEAK),
    log:
        paths.log(paths.WEAK),
    wildcard_constraints:
        variant=dag.variants("denoised"),
    conda:
        ENVIRONMENT
    threads: study.threads
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=GPU,
    params:
        version=lambda w: dag.versions("weak_mask", w),
        within=dag.within,
        settings=dag.look_ahead_settings,
        run=dag.run,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: round {wildcards.round}, look-ahead {wildcards.member}"
    shell:
        "isp weak_mask --state {input.state} {params.within} --round {wildcards.round} --member {wildcards.member}"
        " --sparsity {wildcards.sparsity} {params.settings} --data {input.data} {params.run}"
        " --output {output} > {log} 2>&1"


rule aggregate:
    input:
        unpack(dag.aggregation),
    output:
        paths.ROUND_MASK,
    log:
        paths.log(paths.ROUND_MASK),
    wildcard_constraints:
        variant=dag.variants("denoised"),
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=0,
    params:
        version=lambda w: dag.versions("aggregate", w),
        within=dag.within,
        weak=lambda w, input: dag.repeated("weak", input.get("weak", [])),
        rule=dag.rule,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: round {wildcards.round}, mask at {wildcards.sparsity}"
    shell:
        "isp aggregate --state {input.state} {params.within} {params.weak} {params.rule} --round {wildcards.round}"
        " --sparsity {wildcards.sparsity} --output {output} > {log} 2>&1"
