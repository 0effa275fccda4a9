# Data sets and pre-trained weights: shared by all studies, so they lie in resources/.


rule download:
    output:
        paths.MANIFEST,
    log:
        "resources/logs/download/{task}.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=120,
        gpu=0,
    params:
        version=lambda w: dag.versions("download", w),
    message:
        "{wildcards.task}: data set"
    shell:
        'isp download --task {wildcards.task} --data-root "$ISP_DATA_ROOT" --output {output} > {log} 2>&1'


rule prepare:
    input:
        paths.MANIFEST,
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
        mem_mb=4000,
        runtime=60,
        gpu=0,
    params:
        version=lambda w: dag.versions("prepare", w),
    message:
        "{wildcards.task}: tensors for {wildcards.backbone}"
    shell:
        'isp prepare --backbone {wildcards.backbone} --task {wildcards.task} --data-root "$ISP_DATA_ROOT"'
        " --train {output.train} --validation {output.validation} --test {output.test} > {log} 2>&1"


rule pretrain:
    output:
        paths.WEIGHTS,
    log:
        "resources/logs/pretrain/{backbone}.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
        gpu=0,
    params:
        version=lambda w: dag.versions("pretrain", w),
    message:
        "pre-training {wildcards.backbone}"
    shell:
        "isp pretrain --backbone {wildcards.backbone} --output {output} > {log} 2>&1"
