# Soups: parallel members and their average; parallel weak subnetworks and their merge, which `retrain` trains.


rule train_member:
    input:
        unpack(dag.train_member.inputs),
        data=paths.PREPARED.replace("{split}", "train"),
    output:
        temp(paths.MEMBER),
    log:
        paths.log(paths.MEMBER),
    wildcard_constraints:
        variant=dag.train_member.variants,
    conda:
        ENVIRONMENT
    threads: study.threads
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=GPU,
    params:
        version=dag.train_member.version,
        settings=dag.train_member.settings,
        run=dag.run,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: member {wildcards.member} at {wildcards.sparsity}"
    shell:
        "isp train_member --initial {input.initial} --member {wildcards.member} --sparsity {wildcards.sparsity}"
        " {params.settings} --data {input.data} {params.run} --output {output} > {log} 2>&1"


rule average_members:
    input:
        unpack(dag.average_members.inputs),
    output:
        paths.TICKET,
    log:
        paths.log(paths.TICKET),
    wildcard_constraints:
        variant=dag.average_members.variants,
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=0,
    params:
        version=dag.average_members.version,
        members=lambda w, input: dag.repeated("member", input.members),
        method=dag.average_members.settings,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: averaging at {wildcards.sparsity}"
    shell:
        "isp average_members {params.members} {params.method} --output {output} > {log} 2>&1"


rule choose_members:
    input:
        unpack(dag.choose_members.inputs),
        validation=paths.PREPARED.replace("{split}", "validation"),
    output:
        paths.TICKET,
    log:
        paths.log(paths.TICKET),
    wildcard_constraints:
        variant=dag.choose_members.variants,
    conda:
        ENVIRONMENT
    threads: study.threads
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=GPU,
    params:
        version=dag.choose_members.version,
        members=lambda w, input: dag.repeated("member", input.members),
        method=dag.choose_members.settings,
        scoring=dag.scoring,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: choosing members at {wildcards.sparsity}"
    shell:
        "isp choose_members {params.members} {params.method} --validation {input.validation} {params.scoring}"
        " --output {output} > {log} 2>&1"


rule train_subnetwork:
    input:
        unpack(dag.train_subnetwork.inputs),
        data=paths.PREPARED.replace("{split}", "train"),
    output:
        temp(paths.SUBNETWORK),
    log:
        paths.log(paths.SUBNETWORK),
    wildcard_constraints:
        variant=dag.train_subnetwork.variants,
    conda:
        ENVIRONMENT
    threads: study.threads
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=GPU,
    params:
        version=dag.train_subnetwork.version,
        settings=dag.train_subnetwork.settings,
        run=dag.run,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: weak subnetwork {wildcards.member}"
    shell:
        "isp train_subnetwork --initial {input.initial} --member {wildcards.member} {params.settings}"
        " --data {input.data} {params.run} --output {output} > {log} 2>&1"


rule merge_subnetworks:
    input:
        unpack(dag.merge_subnetworks.inputs),
        validation=paths.PREPARED.replace("{split}", "validation"),
    output:
        state=temp(paths.MERGED),
        mask=paths.MERGED_MASK,
    log:
        paths.log(paths.MERGED_MASK),
    wildcard_constraints:
        variant=dag.merge_subnetworks.variants,
    conda:
        ENVIRONMENT
    threads: study.threads
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=GPU,
    params:
        version=dag.merge_subnetworks.version,
        subnetworks=lambda w, input: dag.repeated("subnetwork", input.subnetworks),
        method=dag.merge_subnetworks.settings,
        scoring=dag.scoring,
    message:
        "{wildcards.task}, seed {wildcards.seed}, {wildcards.variant}: merging weak subnetworks"
    shell:
        "isp merge_subnetworks --initial {input.initial} {params.subnetworks} {params.method}"
        " --validation {input.validation} {params.scoring} --state {output.state} --output {output.mask} > {log} 2>&1"
