# Tickets of every family, the similarity of their masks, and their scores. Only `evaluate` has test examples as input.


rule retrain:
    input:
        unpack(dag.retrain.inputs),
        data=paths.PREPARED.replace("{split}", "train"),
    output:
        paths.TICKET,
    log:
        paths.log(paths.TICKET),
    wildcard_constraints:
        variant=dag.retrain.variants,
    priority: 1  # a round of lottery tickets must not wait for jobs of shorter chains
    conda:
        ENVIRONMENT
    threads: study.threads
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=GPU,
    params:
        version=dag.retrain.version,
        method=dag.retrain.settings,
        run=dag.run,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: training at {wildcards.sparsity}"
    shell:
        "isp retrain --start {input.start} --mask {input.mask} --method {params.method}"
        " --sparsity {wildcards.sparsity} --data {input.data} {params.run} --output {output} > {log} 2>&1"


# Tickets of rounds that are not results of the study. Their masks are kept.
use rule retrain as retrain_round with:
    output:
        temp(paths.TICKET),
    wildcard_constraints:
        backbone=dag.retrain_round.backbones,
        variant=dag.retrain_round.variants,


ruleorder: retrain_round > retrain


rule find_ticket:
    input:
        unpack(dag.find_ticket.inputs),
        data=paths.PREPARED.replace("{split}", "train"),
    output:
        paths.TICKET,
    log:
        paths.log(paths.TICKET),
    wildcard_constraints:
        variant=dag.find_ticket.variants,
    conda:
        ENVIRONMENT
    threads: study.threads
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=GPU,
    params:
        version=dag.find_ticket.version,
        method=dag.find_ticket.settings,
        run=dag.run,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: training and pruning to {wildcards.sparsity}"
    shell:
        "isp find_ticket --initial {input.initial} --data {input.data} {params.method}"
        " --sparsity {wildcards.sparsity} {params.run} --output {output} > {log} 2>&1"


rule compare_masks:
    input:
        unpack(dag.compare_masks.inputs),
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
        version=dag.compare_masks.version,
        comparison=dag.compare_masks.settings,
    message:
        "{wildcards.task}, seed {wildcards.seed}: comparing the masks of all variants"
    shell:
        "isp compare_masks {params.comparison} --output {output} > {log} 2>&1"


rule evaluate:
    input:
        unpack(dag.evaluate.inputs),
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
        version=dag.evaluate.version,
        cell=dag.evaluate.settings,
        scoring=dag.scoring,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: scores at {wildcards.sparsity}"
    shell:
        "isp evaluate --ticket {input.ticket} --validation {input.validation} --test {input.test}"
        " {params.cell} {params.scoring}"
        " --output {output} > {log} 2>&1"
