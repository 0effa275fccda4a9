from __future__ import annotations

from copy import deepcopy
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from isp.config import CHAIN, Study, load_study, parse_study
from isp.errors import ConfigError
from isp.families import make_method
from isp.settings import IN_WORDS
from isp.workflow.rules import make_dag

GOOD: dict[str, Any] = {
    "study": "tiny",
    "training": {"clip_tiny": {"steps": 300, "batch_size": 32, "learning_rate": 5e-4}},
    "variants": {
        "dense": {"method": "dense"},
        "isp": {"method": "isp", "settings": {"rate": 0.2}},
    },
    "grid": [
        {
            "backbone": "clip_tiny",
            "tasks": ["digits"],
            "variants": ["dense", "isp"],
            "sparsities": ["0.8", 0.9],
            "seeds": [0, 1],
        }
    ],
}


def change(path: str, value: Any) -> dict[str, Any]:
    """GOOD with the value at a dotted path replaced, or deleted if it is `...`."""
    changed = deepcopy(GOOD)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    at: Any = changed
    for part in parents:
        at = at.setdefault(part, {}) if isinstance(at, dict) else at[part]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return changed


def test_the_cells_of_a_study() -> None:
    groups = list(parse_study(GOOD, "test").groups())
    assert [(g.seed, g.variant, [str(s) for s in g.sparsities]) for g in groups] == [
        (0, "dense", ["0.0000"]),
        (0, "isp", ["0.8000", "0.9000"]),
        (1, "dense", ["0.0000"]),
        (1, "isp", ["0.8000", "0.9000"]),
    ]


def test_a_variant_cannot_be_named_like_a_chain_of_the_workflows_own() -> None:
    """It was replaced by the rounds of the pooled variant."""
    study = change("variants.pools", {"method": "lottery_pools", "settings": {"rate": 0.5}})
    study["variants"]["pools.rounds"] = {"method": "random"}
    study["grid"][0]["variants"] += ["pools", "pools.rounds"]
    with pytest.raises(ConfigError, match=r"variants\.pools\.rounds: names ending in \.rounds are reserved"):
        parse_study(study, "test")


def test_the_dag_names_its_own_variants_as_no_study_can() -> None:
    study = change("variants.pools", {"method": "lottery_pools", "settings": {"rate": 0.5}})
    study["grid"][0]["variants"].append("pools")
    own = make_dag(parse_study(study, "test")).all_variants.keys() - study["variants"].keys()
    assert own == {"pools.rounds"}
    assert all(name.endswith(CHAIN) for name in own)


def test_what_runs_at_which_sparsities() -> None:
    """Soups are dense where none is given and sparse where some are; what never prunes is dense everywhere."""
    study = change("variants.soup", {"method": "uniform_soup"})
    study["variants"]["instant"] = {"method": "instant_model_soup"}
    study["grid"].append({**study["grid"][0], "variants": ["soup", "instant"], "sparsities": []})
    study["grid"][0] |= {"variants": ["dense", "isp", "soup"], "seeds": [0]}
    study["grid"][1]["seeds"] = [0]
    groups = parse_study(study, "test").groups()
    assert [(g.variant, [str(s) for s in g.sparsities]) for g in groups] == [
        ("dense", ["0.0000"]),
        ("isp", ["0.8000", "0.9000"]),
        ("soup", ["0.8000", "0.9000"]),
        ("soup", ["0.0000"]),
        ("instant", ["0.0000"]),
    ]


def test_a_dense_soup_has_no_steps_at_a_sparsity() -> None:
    study = change("variants.cheap", {"method": "snip", "steps_of": "soup"})
    study["variants"]["soup"] = {"method": "instant_model_soup"}
    study["grid"][0]["variants"] = ["dense", "isp", "soup", "cheap"]
    with pytest.raises(ConfigError, match="'soup' does not prune, so it has no ticket of the same sparsity"):
        parse_study(study, "test")


OWN_TASK = {"kind": "texts", "id": "me/reviews", "inputs": ["text"], "classes": ["bad", "good"], "num_examples": 500}
OWN_TASK["metrics"] = ["accuracy"]
ISP, TRAINING, BLOCK = "variants.isp.settings", "training.clip_tiny", "grid.0"

MALFORMED = [
    # names
    ("sparsites", ["0.5"], "unknown key 'sparsites' (allowed: data_root"),
    ("sutdy", "x", "unknown key 'sutdy'; did you mean 'study'? (allowed: data_root"),
    ("study", ..., "missing key 'study'"),
    ("study", "a/b", "study = 'a/b': must be lower-case letters, digits, _, . and -, and begin"),
    ("study", 7, "study = 7: input should be a valid string"),
    (
        "variants.more",
        {"method": "lth"},
        "variants.more: no block of the grid uses it; add it to one, or leave it out",
    ),
    ("variants.Bad Name", {"method": "isp"}, "variants: the name 'Bad Name' must be lower-case letters, digits, "),
    ("variants.isp.method", "ips", "unknown method 'ips'; did you mean 'isp'? (allowed: dense, "),
    ("variants.isp.method", ..., "missing key 'variants.isp.method'"),
    (
        "variants.isp.setings",
        {},
        "unknown key variants.isp 'setings'; did you mean 'settings'? (allowed: by_backbone, ",
    ),
    ("variants.dense.initial", "imagenet", "variants.dense.initial = 'imagenet': input should be 'pretrained' or"),
    (
        f"{BLOCK}.backbone",
        "clip_tyni",
        "grid.0.backbone: unknown backbone 'clip_tyni'; did you mean 'clip_tiny'? (allowed",
    ),
    (f"{BLOCK}.tasks", ["minst"], "grid.0.tasks: unknown task 'minst'; did you mean 'mnist'? (allowed: cars, "),
    (f"{BLOCK}.variants", ["isp", "lth"], "grid.0: unknown variant 'lth' (allowed: dense, isp)"),
    (f"{BLOCK}.sparsity", ["0.9"], "unknown key grid.0 'sparsity'; did you mean 'sparsities'?"),
    (
        "training.clip_tyni",
        {"steps": 1, "learning_rate": 1},
        "training.clip_tyni: unknown backbone 'clip_tyni'; did you mean 'clip_tiny'",
    ),
    (TRAINING, ..., "grid.0: unknown backbone under training 'clip_tiny' (allowed: none)"),
    ("tasks", {"digit": {}}, "tasks.digit: unknown task 'digit'; did you mean 'digits'? (allowed: cars, "),
    # types
    ("threads", "two", "threads = 'two': input should be a valid integer"),
    ("threads", True, "threads = True: must not be a boolean"),
    ("variants", ["isp"], "variants = ['isp']: input should be a valid dictionary"),
    ("grid", {"backbone": "clip_tiny"}, "grid = {'backbone': 'clip_tiny'}: input should be a valid list"),
    (f"{BLOCK}.tasks", "digits", "grid.0.tasks = 'digits': input should be a valid list"),
    (f"{BLOCK}.seeds", [0.5], "grid.0.seeds.0 = 0.5: input should be a valid integer"),
    (f"{BLOCK}.seeds", [True], "grid.0.seeds = [True]: must not be a boolean (YAML reads yes, no, on and off as"),
    ("study", False, "study = False: must not be a boolean (YAML reads yes, no, on and off as booleans unless they"),
    ("study", None, "study = None: input should be a valid string"),
    (f"{BLOCK}.variants", ["dense", False], "grid.0.variants = ['dense', False]: must not be a boolean (YAML reads"),
    ("variants.isp.method", True, "variants.isp.method = True: must not be a boolean (YAML"),
    ("define.tasks.mine", {**OWN_TASK, "id": "b"}, "define.tasks.mine.id = 'b': must be owner/name"),
    (f"{BLOCK}.sparsities", ["high"], "sparsity 'high': not a number; allowed: a decimal in [0, 1)"),
    (f"{TRAINING}.steps", "many", "training.clip_tiny.steps = 'many': input should be a valid integer"),
    (f"{ISP}.weight_decays", 0.1, "weight_decays = 0.1: input should be a valid tuple"),
    # ranges
    ("threads", 0, "threads = 0: input should be greater than or equal to 1"),
    ("device", "tpu", "device = 'tpu': must be cpu, cuda, or cuda:N with the number N of a GPU"),
    (f"{TRAINING}.step", 3, "unknown key training.clip_tiny 'step'; did you mean 'steps'? (allowed: batch_size, "),
    (f"{TRAINING}.learning_rate", 0, "training.clip_tiny.learning_rate = 0: input should be greater than 0"),
    (f"{TRAINING}.learning_rate", float("nan"), "learning_rate = nan: input should be a finite number"),
    (f"{TRAINING}.weight_decay", -1, "weight_decay = -1: input should be greater than or equal to 0"),
    (f"{TRAINING}.clip_norm", 0, "clip_norm = 0: input should be greater than 0"),
    (f"{TRAINING}.compile", True, "compile = true: a compiled model is trained on a GPU only; set device to cuda"),
    (f"{TRAINING}.compile", 1, "compile = 1: input should be a valid boolean"),
    (f"{TRAINING}.precision", "fp16", "precision = 'fp16': input should be 'fp32' or 'bf16'"),
    (f"{TRAINING}.warmup_steps", 300, "warmup_steps = 300: must be in 0 to 299, below steps"),
    (f"{ISP}.rate", 1.5, "variants.isp: settings of method 'isp': rate = 1.5: input should be less than 1"),
    (f"{ISP}.rate", 1e-9, "rate = 1e-09: input should be greater than or equal to 0.001"),
    (f"{ISP}.rates", 0.1, "unknown key 'rates'; did you mean 'rate'? (allowed: "),
    (f"{ISP}.rate_of", "left", "rate_of = 'left': input should be 'remaining' or 'original'"),
    (f"{ISP}.rule", "vote", "rule = 'vote': input should be 'mean_score', 'votes', 'union' or"),
    (f"{ISP}.denoisers", -1, "denoisers = -1: input should be greater than or equal to 0"),
    (f"{ISP}.look_ahead_steps", 0, "look_ahead_steps = 0: input should be greater than or equal to 1"),
    (f"{ISP}.learning_rate_factors", [2, 1], "learning_rate_factors = [2.0, 1.0]: must be two numbers with 0 <"),
    ("variants.dense.settings", {"rate": 0.1}, "settings of method 'dense': unknown key 'rate' (allowed: none)"),
    (f"{BLOCK}.sparsities", [1.0], "grid.0.sparsities: sparsity 1.0: outside [0, 1)"),
    (f"{BLOCK}.sparsities", [-0.1], "grid.0.sparsities: sparsity -0.1: outside [0, 1)"),
    (f"{BLOCK}.sparsities", ["0.12345"], "sparsity 0.12345: more than four decimals; the nearest allowed one is"),
    (f"{BLOCK}.sparsities", [0.0], "grid.0: method 'isp' prunes: give sparsities above 0"),
    (f"{BLOCK}.sparsities", [], "grid.0: method 'isp' prunes: give sparsities above 0"),
    ("variants.isp", {"method": "greedy_soup", "settings": {"members": 0}}, "members = 0: input should be"),
    ("variants.isp", {"method": "instant_model_soup", "settings": {"coefficients": [1]}}, "in [0, 1], including 0"),
    ("variants.isp", {"method": "uniform_soup", "settings": {"data_fraction": 0.02}}, "a member's 18 of 900 training"),
    (f"{BLOCK}.seeds", [-1], "grid.0.seeds.0 = -1: input should be greater than or equal to 0"),
    (f"{BLOCK}.tasks", [], "grid.0.tasks = []: list should have at least 1 item"),
    ("grid", [], "grid = []: list should have at least 1 item"),
    ("tasks", {"digits": {"num_train": 0}}, "tasks.digits.num_train = 0: input should be greater than or equal to 1"),
    ("tasks", {"digits": {"num_train": 901}}, "tasks.digits: num_train = 901: must be in 1 to 900"),
    ("tasks", {"digits": {"num_validation": 301}}, "tasks.digits: num_validation = 301: must be in 1 to 300"),
    ("tasks", {"digits": {"augmentation": "flip"}}, "tasks.digits.augmentation = 'flip': input should be 'none' or"),
    # impossible schedules
    (
        f"{ISP}.rate",
        0.01,
        "variants.isp, on task 'digits': the rounds exceed the budget: reaching sparsity 0.8000 takes 161",
    ),
    (f"{TRAINING}.steps", 20, "variants.isp, on task 'digits': the rounds exceed the budget"),
    (f"{TRAINING}.batch_size", 901, "batch_size = 901: larger than the 900 training examples there are"),
    (
        f"{ISP}.data_fraction",
        0.02,
        "data_fraction = 0.02: a look-ahead's 18 of 900 training examples do not fill a batch",
    ),
    # equal budgets, methods from files
    ("reference", "ips", "reference: unknown variant to compare with 'ips'; did you mean 'isp'? (allowed: isp)"),
    ("reference", "dense", "reference: unknown variant to compare with 'dense' (allowed: isp)"),  # not pruned
    ("variants.dense.steps_of", "ips", "variants.dense.steps_of: unknown variant 'ips'; did you mean 'isp'?"),
    ("variants.dense.steps_of", "isp", "variants.dense.steps_of: method 'dense' does not train in one run of T steps"),
    (
        "variants.isp",
        {"method": "snip", "steps_of": "dense"},
        "'dense' does not prune, so it has no ticket of the same sparsity",
    ),
    ("variants.isp", {"method": "uniform_soup", "steps_of": "dense"}, "'uniform_soup' does not train in one run of T"),
    ("variants.isp.method", "none.py", "method 'none.py': cannot be read (No such file or directory)"),
    # budgets in epochs, settings by backbone
    (f"{TRAINING}.epochs", 2, "training.clip_tiny: steps, epochs: a protocol must have exactly one of them"),
    (f"{TRAINING}.steps", ..., "training.clip_tiny: steps, epochs: a protocol must have exactly one of them"),
    ("variants.isp.by_backbone", {"clip": {}}, "variants.isp.by_backbone: unknown backbone under training 'clip'; did"),
    ("variants.isp.by_backbone", {"clip_tiny": {"rates": 1}}, "variants.isp.by_backbone.clip_tiny: settings of method"),
    ("variants.isp.by_backbone", {"clip_tiny": {"stop_within": 0.1}}, "this override changes which jobs run; define a"),
    # definitions
    ("define.backbones.mine", {"family": "gpt", "id": "a/b"}, "mine.family = 'gpt': input should be 'clip' or 'bert'"),
    ("define.backbones.mine", {"family": "bert"}, "a backbone needs either an id (owner/name on the hub) or a folder"),
    ("define.backbones.mine", {"family": "bert", "id": "a/b", "folder": "c"}, "either an id"),
    ("define.backbones.mine", {"family": "clip", "id": "a/b", "pooler": "kept"}, "pooler: not a key of family 'clip'"),
    ("define.backbones.mine", {"family": "bert", "id": "a/b", "case": "upper"}, "mine.case = 'upper': input should be"),
    ("define.backbones.mine", {"family": "bert", "ids": "a/b"}, "'ids'; did you mean 'id'? (allowed: architecture"),
    ("define.backbones.clip_tiny", {"family": "bert", "id": "a/b"}, "a backbone of this name exists; choose another"),
    (
        "define.backbones.Mine",
        {"family": "bert", "id": "a/b"},
        "backbones: the name 'Mine' must be lower-case letters, digits and _",
    ),
    ("define.tasks.digits", OWN_TASK, "define.tasks.digits: a task of this name exists; choose another one"),
    ("define.tasks.mine", {**OWN_TASK, "metrics": ["f2"]}, "unknown metric for 2 classes 'f2'; did you mean 'f1'?"),
    ("define.backbones.mine", {"family": "clip", "id": "a/b", "architecture": "ViT-B-3"}, "did you mean 'ViT-B-32'?"),
    (
        "define.backbones.mine",
        {"family": "clip", "folder": "a", "architecture": "RN50"},
        "must be left out with",
    ),
    ("define.tasks.mine", {**OWN_TASK, "num_examples": 1}, "define.tasks.mine.num_examples = 1: input should be"),
    ("define.task", {}, "unknown key define 'task'; did you mean 'tasks'? (allowed: backbones, tasks)"),
    (f"{BLOCK}.tasks", ["rte"], "grid.0: task 'rte' has texts, but backbone 'clip_tiny' takes pictures"),
    # what would take all memory or time, or cannot be passed on
    ("threads", 10**6, "threads = 1000000: input should be less than or equal to 1024"),
    ("threads", 10**90, "threads: integers must fit into 64 bits, got 1000"),
    ("throughput", 0.5, "throughput = 0.5: input should be greater than or equal to 1"),
    (f"{TRAINING}.steps", 10**10, "training.clip_tiny.steps = 10000000000: input should be less than or equal to 10"),
    (f"{ISP}.denoisers", 10**6, "denoisers = 1000000: input should be less than or equal to 1000"),
    (f"{ISP}.look_ahead_steps", 10**99, "integers must fit into 64 bits"),
    ("variants.isp", {"method": "greedy_soup", "settings": {"members": 1001}}, "members = 1001: input should be less"),
    (f"{BLOCK}.seeds", [2**63], "grid.0.seeds.0: integers must fit into 64 bits, got 9223372036854775808"),
    ("define.tasks.mine", {**OWN_TASK, "num_examples": 10**13}, "num_examples = 10000000000000: input should be less"),
    ("question", "a\0b", "question: 'a\\x00b' contains NUL or half of a surrogate pair"),
    (
        "define.tasks.mine",
        {**OWN_TASK, "classes": ["a", "\ud83d"]},
        "define.tasks.mine.classes.1: '\\ud83d' contains NUL or half of a",
    ),
    (f"{ISP}.ra\0te", 1, "variants.isp.settings: 'ra\\x00te' contains NUL"),
    # names that are paths
    ("study", "a" * 201, "string should have at most 200 characters"),
    ("variants." + "a" * 201, {"method": "random"}, "string should have at most 200 characters"),
    ("define.tasks." + "a" * 201, OWN_TASK, "string should have at most 200 characters"),
    ("variants.initial", {"method": "random"}, "variants.initial: this name is reserved for files of a run; choose"),
    (
        "variants.dense",
        {"method": "random"},
        "variants.dense: this name is reserved for files of a run",
    ),
    ("define.tasks.mine", {**OWN_TASK, "id": "../b"}, "id: file name '../b' is absolute or has an empty, '.' or '..'"),
    ("define.tasks.mine", {**OWN_TASK, "folder": "a/../../b"}, "folder: file name 'a/../../b' is absolute or has"),
    ("define.tasks.mine", {**OWN_TASK, "train": "/etc/train"}, "train: file name '/etc/train' is absolute or has"),
    ("define.tasks.mine", {**OWN_TASK, "train": "*"}, "train: '*' must be a name, without spaces, *, ?, [ and ]"),
    ("define.tasks.mine", {**OWN_TASK, "test": "te[s]t"}, "test: 'te[s]t' must be a name"),
    ("define.tasks.mine", {**OWN_TASK, "revision": "a\x1b[31m"}, "revision: file name 'a\\x1b[31m' has a backslash or"),
    ("define.backbones.mine", {"family": "bert", "id": "a/b", "revision": "../x"}, "revision: file name '../x' is"),
    ("define.backbones.mine", {"family": "bert", "id": "a/.."}, "id: file name 'a/..' is absolute or has"),
    # cells that are there twice
    (f"{BLOCK}.sparsities", [0.9, "0.90"], "grid.0: sparsities 0.9000, 0.9000: each must be given only once"),
    (f"{BLOCK}.seeds", [0, 0], "the cell clip_tiny/digits/dense/0/0.0000 occurs twice"),
    (f"{BLOCK}.variants", ["dense", "isp", "isp"], "the cell clip_tiny/digits/isp/0/0.8000 occurs twice"),
    (f"{BLOCK}.tasks", ["digits", "digits"], "the cell clip_tiny/digits/dense/0/0.0000 occurs twice"),
]


@pytest.mark.parametrize(("path", "value", "message"), MALFORMED)
def test_what_is_wrong_is_named_with_what_is_allowed(tmp_path: Path, path: str, value: Any, message: str) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(yaml.safe_dump(change(path, value)))
    with pytest.raises(ConfigError) as caught:
        load_study(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["similarity.json", "similarity.log"])
def test_variants_that_would_be_a_file_of_the_run(name: str) -> None:
    study = change("variants.isp", {"method": "random"})
    study["variants"][name] = {"method": "random"}
    with pytest.raises(ConfigError, match=f"variants.{name}: this name is reserved for files of a run"):
        parse_study(study, "here")


@pytest.mark.parametrize("place", ["variants", "training", "tasks", "define.backbones", "define.tasks"])
def test_a_name_that_yaml_reads_as_a_boolean(place: str) -> None:
    """`no: {method: isp}` is a variant named False for a YAML reader; the message says how to name it "no"."""
    study = change(place, {False: {}})
    with pytest.raises(ConfigError) as caught:
        parse_study(study, "here")
    assert f"{place}: the name False must not be a boolean (YAML reads yes, no, on and off" in str(caught.value)
    assert "[key]" not in str(caught.value)


def test_every_pattern_of_a_study_file_is_told_in_words() -> None:
    def patterns(schema: Any) -> set[str]:
        values = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
        keys = schema if isinstance(schema, dict) else {}
        own = {each for each in (keys.get("pattern"), *keys.get("patternProperties", ())) if isinstance(each, str)}
        return own.union(*map(patterns, values))

    assert patterns(Study.model_json_schema()) == IN_WORDS.keys()


def test_values_in_messages_are_cut() -> None:
    long = "x" * 10**6
    for path, value in (("study", long), ("device", long), ("reference", long), (f"{TRAINING}.steps", long),
                        (f"{ISP}.rule", long), (f"{ISP}.{long}", 1), (f"{BLOCK}.tasks", [long]),
                        (f"{BLOCK}.sparsities", [long]), ("define.tasks.mine", {**OWN_TASK, "classes": {long: 1}}),
                        ("define.tasks.mine", {**OWN_TASK, "kind": "pictures", "templates": [long]})):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            parse_study(change(path, value), "here")
        assert len(str(caught.value)) < 3000, path


def test_the_variant_to_compare_with() -> None:
    """Named, or isp, or the first of the method isp, or the first that is pruned, or the first."""
    assert parse_study(GOOD, "test").reference_variant() == "isp"
    study = change("variants", {"dense": {"method": "dense"}, "a": {"method": "random"}, "b": {"method": "one_shot"}})
    study["grid"][0]["variants"] = ["dense", "b", "a"]
    assert parse_study(study, "test").reference_variant() == "a"
    assert parse_study(study | {"reference": "b"}, "test").reference_variant() == "b"
    for method in ("isp", "isp_code"):
        study["variants"]["b"] = {"method": method}
        assert parse_study(study, "test").reference_variant() == ("b" if method == "isp" else "a")
    study["variants"] |= {"isp": {"method": "random"}}
    study["grid"][0]["variants"] += ["isp"]
    assert parse_study(study, "test").reference_variant() == "isp"
    only_dense = change("variants", {"dense": {"method": "dense"}})
    only_dense["grid"][0]["variants"] = ["dense"]
    assert parse_study(only_dense, "test").reference_variant() == "dense"


def test_an_equal_budget_is_all_steps_of_the_others_ticket() -> None:
    """At 0.9 ISP takes 7 rounds of s = 0.3 with 4 copies of 50 steps: T is raised from 300 by 7 * 4 * 50."""
    study = change("variants.cheap", {"method": "one_shot", "steps_of": "isp"})
    study["variants"]["isp"]["settings"] = {"rate": 0.3, "segment_fraction": 0.075, "denoisers": 4}
    study["grid"][0]["variants"] = ["isp", "cheap"]
    del study["variants"]["dense"]
    found = parse_study(study, "test")
    assert found.protocol("clip_tiny", "digits").steps == 300
    assert found.protocol("clip_tiny", "digits", "isp", Decimal("0.9")).steps == 300
    assert found.protocol("clip_tiny", "digits", "cheap", Decimal("0.9")).steps == 300 + 7 * 4 * 50
    assert found.protocol("clip_tiny", "digits", "cheap", Decimal("0.8")).steps == 300 + 5 * 4 * 50
    study["variants"]["isp"] = {"method": "isp_code"}
    with pytest.raises(ConfigError, match="the steps of 'isp' are not known in advance"):
        parse_study(study, "test")


def test_a_budget_in_epochs_follows_the_task() -> None:
    """900 and 800 images are 28 and 25 whole batches of 32."""
    study = change("training.clip_tiny", {"epochs": 15.5, "batch_size": 32, "learning_rate": 5e-4, "warmup_steps": 9})
    assert parse_study(study, "test").protocol("clip_tiny", "digits").steps == 434
    study["tasks"] = {"digits": {"num_train": 800}}
    study["training"]["clip_tiny"]["epochs"] = 16
    assert parse_study(study, "test").protocol("clip_tiny", "digits").steps == 400
    study["training"]["clip_tiny"]["warmup_steps"] = 400
    with pytest.raises(ConfigError, match="on task 'digits': training: warmup_steps = 400: must be in 0 to 399"):
        parse_study(study, "test")


def test_settings_that_are_others_on_a_backbone() -> None:
    study = change("variants.isp.by_backbone", {"bert_tiny": {"rate_of": "original", "rate": 0.1}})
    study["training"]["bert_tiny"] = {"steps": 400, "batch_size": 32, "learning_rate": 1e-3}
    study["grid"].append({**study["grid"][0], "backbone": "bert_tiny", "tasks": ["half_order"]})
    dag = make_dag(parse_study(study, "test"))
    cells = [SimpleNamespace(variant="isp", backbone=name, sparsity="0.8000") for name in ("clip_tiny", "bert_tiny")]
    assert [len(dag.chain(cell)) for cell in cells] == [8, 8]  # type: ignore[arg-type]
    assert [str(dag.nominal(cell, 1)) for cell in cells] == ["0.3600", "0.2000"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"FAMILY = 'one_shot'", "must define VERSION and Settings"),
        (b"import nothing_like_that", r"cannot be loaded \(ModuleNotFoundError: No module named"),
        (b"def", r"cannot be loaded \(SyntaxError"),
    ],
)
def test_a_methods_file_that_is_none(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "mine.py").write_bytes(content)
    with pytest.raises(ConfigError, match=f"mine.py': {message}"):
        make_method(str(tmp_path / "mine.py"))


def test_a_backbone_and_a_task_of_ones_own() -> None:
    study = deepcopy(GOOD)
    study["define"] = {
        "backbones": {"mine": {"family": "bert", "folder": "models/mine", "pooler": "pruned"}},
        "tasks": {"reviews": OWN_TASK},
    }
    study["training"]["mine"] = {"steps": 300, "batch_size": 32, "learning_rate": 1e-4}
    study["grid"].append({**study["grid"][0], "backbone": "mine", "tasks": ["reviews"]})
    found = parse_study(study, "test")
    assert found.num_train("reviews") == 450
    assert "bert.pooler.dense.weight" in found.backbone("mine").prunable
    assert found.defined("backbone", "mine") == '{"family":"bert","folder":"models/mine","pooler":"pruned"}'
    assert found.defined("backbone", "clip_tiny") == "clip_tiny"


def test_a_block_that_repeats_cells_of_another_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the cell clip_tiny/digits/dense/0/0\.0000 occurs twice"):
        parse_study(change("grid", GOOD["grid"] * 2), "test")


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    assert load_study(path) == parse_study(GOOD, "test")
    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read \(No such file"):
        load_study(tmp_path / "none.yaml")
    twice = b"study: a\nvariants: {}\nvariants: {}\n"
    for text, message in (
        (twice, r"not YAML \(the key 'variants' occurs twice in .* line 3"),
        (b"a: [", 'not YAML .*study.yaml", line 1, column 5'),
        (b"a: 1\n\tb: 2", 'not YAML .*study.yaml", line 2, column 1'),
        (b"a: \xff\xfe", r"not UTF-8 \(byte 0xff at position 3\); save it as UTF-8"),
        (b"- a", "a mapping of keys to values, got list"),
        (b"# nothing", "a mapping of keys to values, got an empty file"),
    ):
        path.write_bytes(text)
        with pytest.raises(ConfigError, match=message):
            load_study(path)


def test_definitions_can_be_read_again_as_a_study_states_them() -> None:
    """As study.json does, with every default; and a job is told the keys that differ from defaults, as ever."""
    backbones = {"b": {"family": "bert", "id": "a/b", "case": "kept"}, "c": {"family": "clip", "id": "a/b"}}
    define = {
        "backbones": backbones,
        "tasks": {"t": OWN_TASK, "p": {**OWN_TASK, "kind": "pictures"}},
    }
    found = parse_study(change("define", define), "test")
    stated = found.model_dump(mode="json", exclude={"data_root"})
    assert parse_study(stated, "test").define == found.define
    assert stated["define"]["backbones"]["c"].keys() == {"family", "id", "revision", "folder", "architecture"}
    assert found.defined("backbone", "c") == '{"family":"clip","id":"a/b"}'


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent.parent / "config").rglob("*.yaml")), ids=lambda p: p.name
)
def test_the_study_files_of_the_repository_are_valid(path: Path) -> None:
    assert list(load_study(path).groups())


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        make_method("isp").settings.rate = 0.5  # type: ignore[attr-defined]
