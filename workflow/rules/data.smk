# Data sets and pre-trained weights: shared by all studies, so they lie in resources/.


rule download:
    output:
        paths.MANIFEST,
    params:
        version=lambda w: dag.versions("download", w),
    log:
        "resources/logs/download/{task}.log",
    threads: 1
    resources:
        mem_mb=1000,
        runtime=120,
    message:
        "{wildcards.task}: data set"
    conda:
        ENVIRONMENT
    shell:
        "isp download --task {wildcards.task} --data-root {config[data_root]:q} --output {output} > {log} 2>&1"


rule prepare:
    input:
        paths.MANIFEST,
    output:
        train=paths.PREPARED.replace("{split}", "train"),
        validation=paths.PREPARED.replace("{split}", "validation"),
        test=paths.PREPARED.replace("{split}", "test"),
    params:
        version=lambda w: dag.versions("prepare", w),
    log:
        "resources/logs/prepare/{backbone}/{task}.log",
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    message:
        "{wildcards.task}: tensors for {wildcards.backbone}"
    conda:
        ENVIRONMENT
    shell:
        "isp prepare --backbone {wildcards.backbone} --task {wildcards.task} --data-root {config[data_root]:q}"
        " --train {output.train} --validation {output.validation} --test {output.test} > {log} 2>&1"


rule pretrain:
    output:
        paths.WEIGHTS,
    params:
        version=lambda w: dag.versions("pretrain", w),
    log:
        "resources/logs/pretrain/{backbone}.log",
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    message:
        "pre-training {wildcards.backbone}"
    conda:
        ENVIRONMENT
    shell:
        "isp pretrain --backbone {wildcards.backbone} --output {output} > {log} 2>&1"
