# Soups: members side by side, and their average; weak subnetworks side by side, and what `retrain` goes on with.


rule train_member:
    input:
        initial=dag.initial,
        data=paths.PREPARED.replace("{split}", "train"),
    output:
        temp(paths.MEMBER),
    log:
        paths.log(paths.MEMBER),
    wildcard_constraints:
        variant=dag.variants("souped", "chosen"),
    conda:
        ENVIRONMENT
    threads: study.threads
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=GPU,
    params:
        version=lambda w: dag.versions("train_member", w),
        settings=dag.member_settings,
        run=dag.run,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: member {wildcards.member} at {wildcards.sparsity}"
    shell:
        "isp train_member --initial {input.initial} --member {wildcards.member} --sparsity {wildcards.sparsity}"
        " {params.settings} --data {input.data} {params.run} --output {output} > {log} 2>&1"


rule average_members:
    input:
        members=dag.members,
    output:
        paths.TICKET,
    log:
        paths.log(paths.TICKET),
    wildcard_constraints:
        variant=dag.variants("souped"),
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=0,
    params:
        version=lambda w: dag.versions("average_members", w),
        members=lambda w, input: dag.repeated("member", input.members),
        method=dag.settings,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: averaging at {wildcards.sparsity}"
    shell:
        "isp average_members {params.members} {params.method} --output {output} > {log} 2>&1"


rule choose_members:
    input:
        members=dag.members,
        validation=paths.PREPARED.replace("{split}", "validation"),
    output:
        paths.TICKET,
    log:
        paths.log(paths.TICKET),
    wildcard_constraints:
        variant=dag.variants("chosen"),
    conda:
        ENVIRONMENT
    threads: study.threads
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=GPU,
    params:
        version=lambda w: dag.versions("choose_members", w),
        members=lambda w, input: dag.repeated("member", input.members),
        method=dag.settings,
        scoring=dag.scoring,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: choosing members at {wildcards.sparsity}"
    shell:
        "isp choose_members {params.members} {params.method} --validation {input.validation} {params.scoring}"
        " --output {output} > {log} 2>&1"


rule train_subnetwork:
    input:
        initial=dag.initial,
        data=paths.PREPARED.replace("{split}", "train"),
    output:
        temp(paths.SUBNETWORK),
    log:
        paths.log(paths.SUBNETWORK),
    wildcard_constraints:
        variant=dag.variants("instant"),
    conda:
        ENVIRONMENT
    threads: study.threads
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=GPU,
    params:
        version=lambda w: dag.versions("train_subnetwork", w),
        settings=dag.subnetwork_settings,
        run=dag.run,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: weak subnetwork {wildcards.member}"
    shell:
        "isp train_subnetwork --initial {input.initial} --member {wildcards.member} {params.settings}"
        " --data {input.data} {params.run} --output {output} > {log} 2>&1"


rule merge_subnetworks:
    input:
        initial=dag.initial,
        subnetworks=dag.subnetworks,
        validation=paths.PREPARED.replace("{split}", "validation"),
    output:
        state=temp(paths.MERGED),
        mask=paths.MERGED_MASK,
    log:
        paths.log(paths.MERGED_MASK),
    wildcard_constraints:
        variant=dag.variants("instant"),
    conda:
        ENVIRONMENT
    threads: study.threads
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=GPU,
    params:
        version=lambda w: dag.versions("merge_subnetworks", w),
        subnetworks=lambda w, input: dag.repeated("subnetwork", input.subnetworks),
        method=dag.settings,
        scoring=dag.scoring,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: merging weak subnetworks"
    shell:
        "isp merge_subnetworks --initial {input.initial} {params.subnetworks} {params.method}"
        " --validation {input.validation} {params.scoring} --state {output.state} --output {output.mask} > {log} 2>&1"
