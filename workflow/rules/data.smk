# Datasets and pre-trained weights, which all studies share and which are therefore in resources/.


rule download:
    output:
        paths.MANIFEST,
    log:
        "resources/logs/download/{kind}/{name}.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=0,
    params:
        version=dag.download.version,
        wanted=dag.download.settings,
    message:
        "{wildcards.name}: downloading the files of the {wildcards.kind}"
    shell:
        'isp download {params.wanted} --data-root "$ISP_DATA_ROOT" --output {output} > {log} 2>&1'


rule split:
    input:
        manifest=paths.MANIFEST.format(kind="task", name="{task}"),
    output:
        paths.SPLIT,
    log:
        "resources/logs/split/{task}.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=0,
    params:
        version=dag.split.version,
        task=dag.task,
    message:
        "{wildcards.task}: choosing validation examples"
    shell:
        'isp split {params.task} --data-root "$ISP_DATA_ROOT" --manifest {input.manifest} --output {output} > {log} 2>&1'


rule pretrain:
    output:
        paths.WEIGHTS,
    log:
        "resources/logs/pretrain/{backbone}.log",
    wildcard_constraints:
        backbone=dag.backbones(embedded=True),
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=0,
    params:
        version=dag.pretrain.version,
    message:
        "pre-training {wildcards.backbone}"
    shell:
        "isp pretrain --backbone {wildcards.backbone} --output {output} > {log} 2>&1"


rule convert:
    input:
        manifest=paths.MANIFEST.format(kind="backbone", name="{backbone}"),
    output:
        paths.WEIGHTS,
    log:
        "resources/logs/convert/{backbone}.log",
    wildcard_constraints:
        backbone=dag.backbones(embedded=False),
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=0,
    params:
        version=dag.convert.version,
        backbone=dag.backbone,
    message:
        "{wildcards.backbone}: converting the pre-trained weights"
    shell:
        'isp convert {params.backbone} --data-root "$ISP_DATA_ROOT" --manifest {input.manifest} --output {output}'
        " > {log} 2>&1"


rule prepare:
    input:
        manifest=paths.MANIFEST.format(kind="task", name="{task}"),
        split=paths.SPLIT,
        weights=paths.WEIGHTS,
    output:
        train=paths.PREPARED.replace("{split}", "train"),
        validation=paths.PREPARED.replace("{split}", "validation"),
        test=paths.PREPARED.replace("{split}", "test"),
    log:
        "resources/logs/prepare/{backbone}/{task}.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=requests.mem_mb,
        runtime=requests.runtime,
        gpu=0,
    params:
        version=dag.prepare.version,
        backbone=dag.backbone,
        task=dag.task,
    message:
        "{wildcards.task}: preparing tensors for {wildcards.backbone}"
    shell:
        'isp prepare {params.backbone} {params.task} --data-root "$ISP_DATA_ROOT" --manifest {input.manifest}'
        " --split {input.split} --weights {input.weights}"
        " --train {output.train} --validation {output.validation} --test {output.test} > {log} 2>&1"
