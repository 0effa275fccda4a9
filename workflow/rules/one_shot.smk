# One-shot methods: a mask before training.


rule prune_one_shot:
    input:
        initial=dag.initial,
        data=paths.PREPARED.replace("{split}", "train"),
    output:
        paths.ONE_SHOT_MASK,
    log:
        paths.log(paths.ONE_SHOT_MASK),
    wildcard_constraints:
        variant=dag.variants("one_shot"),
    conda:
        ENVIRONMENT
    threads: study.threads
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=GPU,
    params:
        version=lambda w: dag.versions("prune_one_shot", w),
        method=dag.settings,
        run=dag.run,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: mask at {wildcards.sparsity}"
    shell:
        "isp prune_one_shot --initial {input.initial} --data {input.data} {params.method}"
        " --sparsity {wildcards.sparsity} {params.run} --output {output} > {log} 2>&1"
