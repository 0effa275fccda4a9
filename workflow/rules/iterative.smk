# Iterative magnitude pruning: each round prunes the ticket of the round before; `retrain` trains the next.


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
        mem_mb=2000,
        runtime=10,
        gpu=0,
    params:
        version=lambda w: dag.versions("prune_iterative", w),
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: round {wildcards.round}, mask at {wildcards.sparsity}"
    shell:
        "isp prune_iterative --ticket {input} --round {wildcards.round} --sparsity {wildcards.sparsity}"
        " --output {output} > {log} 2>&1"
