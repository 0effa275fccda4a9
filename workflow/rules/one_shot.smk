# One-shot methods, which find a mask before training.


rule prune_one_shot:
    input:
        unpack(dag.prune_one_shot.inputs),
        data=paths.PREPARED.replace("{split}", "train"),
    output:
        paths.ONE_SHOT_MASK,
    log:
        paths.log(paths.ONE_SHOT_MASK),
    wildcard_constraints:
        variant=dag.prune_one_shot.variants,
    conda:
        ENVIRONMENT
    threads: study.threads
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=GPU,
    params:
        version=dag.prune_one_shot.version,
        method=dag.prune_one_shot.settings,
        run=dag.run,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: mask at {wildcards.sparsity}"
    shell:
        "isp prune_one_shot --initial {input.initial} --data {input.data} {params.method}"
        " --sparsity {wildcards.sparsity} {params.run} --output {output} > {log} 2>&1"
