# Tickets of every family, how alike their masks are, and their scores. Only `evaluate` has test examples among its inputs.


rule retrain:
    input:
        unpack(dag.retraining),
        data=paths.PREPARED.replace("{split}", "train"),
    output:
        paths.TICKET,
    log:
        paths.log(paths.TICKET),
    wildcard_constraints:
        variant=dag.variants("one_shot", "iterative", "denoised", "instant"),
    conda:
        ENVIRONMENT
    threads: study.threads
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=GPU,
    params:
        version=lambda w: dag.versions("retrain", w),
        method=dag.method,
        run=dag.run,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: training at {wildcards.sparsity}"
    shell:
        "isp retrain --start {input.start} --mask {input.mask} --method {params.method}"
        " --sparsity {wildcards.sparsity} --data {input.data} {params.run} --output {output} > {log} 2>&1"


rule find_ticket:
    input:
        initial=dag.initial,
        data=paths.PREPARED.replace("{split}", "train"),
    output:
        paths.TICKET,
    log:
        paths.log(paths.TICKET),
    wildcard_constraints:
        variant=dag.variants("one_job"),
    conda:
        ENVIRONMENT
    threads: study.threads
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=GPU,
    params:
        version=lambda w: dag.versions("find_ticket", w),
        method=dag.settings,
        run=dag.run,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: training and pruning to {wildcards.sparsity}"
    shell:
        "isp find_ticket --initial {input.initial} --data {input.data} {params.method}"
        " --sparsity {wildcards.sparsity} {params.run} --output {output} > {log} 2>&1"


rule compare_masks:
    input:
        dag.compared,
    output:
        paths.SIMILARITY,
    log:
        paths.log(paths.SIMILARITY),
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=0,
    params:
        version=dag.versions("compare_masks"),
        comparison=dag.comparison,
    message:
        "{wildcards.task}, seed {wildcards.seed}: comparing the masks of all variants"
    shell:
        "isp compare_masks {params.comparison} --output {output} > {log} 2>&1"


rule evaluate:
    input:
        ticket=dag.ticket,
        validation=paths.PREPARED.replace("{split}", "validation"),
        test=paths.PREPARED.replace("{split}", "test"),
    output:
        paths.RECORD,
    log:
        paths.log(paths.RECORD),
    conda:
        ENVIRONMENT
    threads: study.threads
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=GPU,
    params:
        version=lambda w: dag.versions("evaluate", w),
        cell=dag.cell,
        scoring=dag.scoring,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: scores at {wildcards.sparsity}"
    shell:
        "isp evaluate --ticket {input.ticket} --validation {input.validation} --test {input.test}"
        " {params.cell} {params.scoring}"
        " --output {output} > {log} 2>&1"
