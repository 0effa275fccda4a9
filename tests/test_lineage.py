"""What ties artifacts to their cells: no stage takes a file that was made for something else."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from isp import artifacts, files, lineage
from isp.api import load_ticket, save_ticket
from isp.errors import ArtifactError, IspError
from isp.stages.collect import Blocks, collect
from isp.stages.evaluate import evaluate
from isp.stages.retrain import retrain

RUNS = "results/study/runs"
CLIP, OTHER_SEED, BERT = ("clip_tiny", "digits", 0), ("clip_tiny", "digits", 1), ("bert_tiny", "half_order", 0)
TRAINING = {"steps": 4, "batch_size": 8, "learning_rate": 1e-3}
LOOK_AHEAD = {"look_ahead_steps": 1}
SUBNETWORK = {"look_ahead_steps": 1, "sparsities": [0.2]}
POOLS = {"rate": 0.5, "coefficients": [0.5]}
Call = tuple[str, dict[str, Any]]


def calls(backbone: str, task: str, seed: int) -> Iterator[Call]:
    """Every stage that reads artifacts, as a study calls it, each after those whose outputs it reads."""
    run, prepared = Path(f"{RUNS}/{backbone}/{task}/seed{seed}"), Path(f"resources/prepared/{backbone}/{task}")
    parts = {part: prepared / f"{part}.safetensors" for part in ("train", "validation", "test")}
    weights = Path(f"resources/backbones/{backbone}.safetensors")
    place = {"backbone": backbone, "task": task}
    raw = {"data_root": Path("data"), "manifest": Path(f"resources/{task}.json")}
    split = Path(f"resources/splits/{task}.safetensors")
    common = {**place, "seed": seed, "data": parts["train"], "training": TRAINING, "limits": {"num_train": 64}}
    scoring = {**place, "limits": {"num_validation": 16}}
    initial = {"initial": run / "initial/pretrained.safetensors"}
    dense = run / "dense/pretrained.safetensors"
    if seed == 0:
        yield "prepare", {**place, **raw, "split": split, "weights": weights, **parts}
    output = {"output": initial["initial"]}
    yield "initialise", {**common, **output, "weights": weights, "initial": "pretrained"}
    yield "finetune_dense", {**common, **initial, "output": dense}

    for method in ("one_shot", "random"):
        cell, chosen = run / method / "0.5000", {"method": method, "sparsity": "0.5"}
        mask = cell / "mask.safetensors"
        yield "prune_one_shot", {**common, **initial, **chosen, "settings": {}, "output": mask}
        start = {"start": initial["initial"], "mask": mask}
        yield "retrain", {**common, **start, **chosen, "output": cell / "ticket.safetensors"}

    state, cell = run / "isp/round0/state.safetensors", run / "isp/round0/to0.5000"
    yield "train_segment", {**common, "start": initial["initial"], "until": 1, "output": state}
    at: dict[str, Any] = {"state": state, "round_": 0, "sparsity": "0.5"}
    copies = {**common, **at, "settings": LOOK_AHEAD}
    yield "weak_mask", {**copies, "member": 2, "output": cell / "weak2.safetensors"}  # of another number of copies
    superposed = {"denoisers": 2, "rule": "union", "output": cell / "mask.safetensors"}
    yield "prune_denoised", {**copies, **superposed}
    ticket = {"method": "isp", "sparsity": "0.5", "output": run / "isp/0.5000/ticket.safetensors"}
    yield "retrain", {**common, "start": state, "mask": cell / "mask.safetensors", **ticket}
    several = {"first": 1, "rounds": "[[2, 0.6]]", "until": 3, "settings": LOOK_AHEAD, "denoisers": 2, "rule": "union"}
    within = {"start": state, "within": cell / "mask.safetensors", **several}
    yield "run_rounds", {**common, **within, "output": run / "isp/rounds1-2/state.safetensors"}
    goes_on = {"start": state, "within": cell / "mask.safetensors", "until": 2}
    yield "train_segment", {**common, **goes_on, "output": run / "isp/round1/state.safetensors"}

    mask, cell = run / "lth/round0/to0.5000/mask.safetensors", run / "lth/0.5000"
    yield "prune_iterative", {"ticket": dense, "round_": 0, "sparsity": "0.5", "output": mask}
    ticket = {"method": "lth", "sparsity": "0.5", "output": cell / "ticket.safetensors"}
    yield "retrain", {**common, "start": initial["initial"], "mask": mask, **ticket}
    pools = {"method": "lottery_pools", "settings": POOLS, "validation": parts["validation"]}
    pooled = {"ticket": ticket["output"], "candidate": [dense], "output": run / "pools/0.5000/ticket.safetensors"}
    yield "pool_tickets", {**scoring, **pools, **pooled}

    chosen = {"method": "progressive", "settings": {}, "sparsity": "0.5"}
    yield "find_ticket", {**common, **initial, **chosen, "output": run / "progressive/0.5000/ticket.safetensors"}

    soup = {"members": 2, "learning_rate_factors": [1e-05, 1]}
    own = importlib.import_module("isp.methods.uniform_soup").Settings(**soup)
    members = [run / f"soup/0.5000/member{member}.safetensors" for member in (0, 1)]
    for member, path in enumerate(members):
        asked = {"member": member, "sparsity": "0.5", "settings": as_option(own.of_member(sparsity=1))}
        yield "train_member", {**common, **initial, **asked, "output": path}
    mixed = {"member": members, "method": "uniform_soup", "settings": as_option(own.model_dump(mode="json"))}
    yield "average_members", {**mixed, "output": run / "soup/0.5000/ticket.safetensors"}
    mixed = {"member": members, "method": "greedy_soup", "settings": mixed["settings"], **scoring}
    output = {"validation": parts["validation"], "output": run / "greedy/0.5000/ticket.safetensors"}
    yield "choose_members", {**mixed, **output}

    weak = [run / f"instant/0.0000/subnetwork{member}.safetensors" for member in (0, 1)]
    settings = importlib.import_module("isp.methods.instant_model_soup").Settings(**SUBNETWORK, subnetworks=2)
    for member, path in enumerate(weak):
        asked = {"member": member, "settings": as_option(settings.of_subnetwork())}
        yield "train_subnetwork", {**common, **initial, **asked, "output": path}
    merged = {name: run / f"instant/0.0000/{name}.safetensors" for name in ("merged", "merged_mask")}
    mixing = {"method": "instant_model_soup", "settings": as_option(settings.model_dump(mode="json"))}
    written = {"state": merged["merged"], "output": merged["merged_mask"]}
    mixing |= {**initial, "subnetwork": weak, "validation": parts["validation"]}
    yield "merge_subnetworks", {**scoring, **mixing, **written}
    start = {"start": merged["merged"], "mask": merged["merged_mask"]}
    ticket = {"method": "instant_model_soup", "sparsity": "0", "output": run / "instant/0.0000/ticket.safetensors"}
    yield "retrain", {**common, **start, **ticket}

    names = {"study": "study", **place, "seed": seed}
    test = {"validation": parts["validation"], "test": parts["test"]}
    for variant in ("one_shot", "random"):
        cell = run / variant / "0.5000"
        record = {"cell": {**names, "variant": variant}, "output": cell / "metrics.json"}
        yield "evaluate", {**scoring, **test, "ticket": cell / "ticket.safetensors", **record}
    compared = {"0.5000": {variant: str(run / variant / "0.5000/ticket.safetensors") for variant in ("isp", "random")}}
    yield "compare_masks", {"tickets": compared, "cell": names, "output": run / "similarity.json"}


def as_option(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as a stage gets them from its command line."""
    from isp.stages._options import mapping

    return mapping(json.dumps(settings))


def written(stage: str) -> set[str]:
    """The options of a stage that name what it writes."""
    parts = {"prepare": {"train", "validation", "test"}, "merge_subnetworks": {"output", "state"}}
    return parts.get(stage, {"output"})


def inputs(stage: str, options: dict[str, Any]) -> Iterator[tuple[str, int | None, Path]]:
    """Every artifact that a call reads: its option, its index where there are several, its path."""
    for key, value in options.items():
        if key in written(stage) | {"manifest", "data_root"}:
            continue
        if isinstance(value, Path):
            yield key, None, value
        elif isinstance(value, list):
            yield from ((key, index, path) for index, path in enumerate(value) if isinstance(path, Path))
    if stage == "compare_masks":
        yield from (("tickets", index, Path(path)) for index, path in enumerate(options["tickets"]["0.5000"].values()))


def make(stage: str, options: dict[str, Any]) -> None:
    getattr(importlib.import_module(f"isp.stages.{stage}"), stage)(**options)


@pytest.fixture(scope="module")
def made(short_pretraining: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the artifacts of three runs."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copytree(short_pretraining, "resources")
        for task in ("digits", "half_order"):
            make("download", {"data_root": Path("data"), "output": Path(f"resources/{task}.json"), "task": task})
            raw = {"data_root": Path("data"), "manifest": Path(f"resources/{task}.json")}
            make("split", {**raw, "task": task, "output": Path(f"resources/splits/{task}.safetensors")})
        for run in (CLIP, OTHER_SEED, BERT):
            for stage, options in calls(*run):
                make(stage, options)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working folder."""
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def replaced(options: dict[str, Any], key: str, index: int | None, path: Path) -> dict[str, Any]:
    """A call that reads another file in the place of one."""
    if key == "tickets":
        names = list(options["tickets"]["0.5000"])
        return {**options, key: {"0.5000": {**options["tickets"]["0.5000"], names[index or 0]: str(path)}}}
    if index is None:
        return {**options, key: path}
    return {**options, key: [path if place == index else each for place, each in enumerate(options[key])]}


class Put:
    """A file in the place of another one, for a while; and what the stages wrote before stays as it was."""

    def __init__(self, foreign: Path, place: Path) -> None:
        self.foreign, self.place, self.before = foreign.read_bytes(), place, place.read_bytes()

    def __enter__(self) -> None:
        self.place.write_bytes(self.foreign)

    def __exit__(self, *_: object) -> None:
        self.place.write_bytes(self.before)


def refusal(stage: str, options: dict[str, Any]) -> str:
    """The text with which a stage refuses its inputs before it writes anything; "" if it does not."""
    before = options["output"].read_bytes() if "output" in options else b""
    try:
        make(stage, options)
    except IspError as error:
        assert "output" not in options or options["output"].read_bytes() == before
        return str(error)
    return ""


@pytest.mark.parametrize("other", [OTHER_SEED, BERT])
def test_no_stage_takes_an_artifact_of_another_run(here: Path, other: tuple[str, str, int]) -> None:
    """Every input of every stage: of another seed, or of another backbone and task; copied into place, and named."""
    theirs = by_output(other)
    taken, cases = [], 0
    for stage, options in calls(*CLIP):
        counterpart = theirs.get(name_of(stage, options))
        if counterpart is None:
            continue
        both = zip(inputs(stage, options), inputs(*counterpart), strict=True)
        for (key, index, ours), (_, _, foreign) in both:
            if foreign == ours:
                continue
            cases += 1
            with Put(foreign, ours):
                said = refusal(stage, options)
            of_task = "'half_order'" if "splits" in str(foreign) else "'bert_tiny'"
            expected = str(foreign) if str(foreign).startswith("results") else of_task
            if str(ours) not in said or expected not in said:
                taken.append((stage, key, "copied", said))
            said = refusal(stage, replaced(options, key, index, foreign))
            if str(foreign) not in said:
                taken.append((stage, key, "named", said))
    assert not taken
    assert cases >= 37


def name_of(stage: str, options: dict[str, Any]) -> str:
    """A call, whatever its run."""
    output = str(options.get("output", "prepared"))
    return f"{stage} {output.partition('/seed')[2][1:]}"


def by_output(run: tuple[str, str, int]) -> dict[str, Call]:
    return {name_of(stage, options): (stage, options) for stage, options in calls(*run)}


def test_no_stage_takes_another_artifact_of_its_run(here: Path) -> None:
    """Every input of every stage, replaced by another file of its kind: of another variant, round, copy or member."""
    run = Path(RUNS) / "clip_tiny/digits/seed0"
    of_kind: dict[str, list[Path]] = {}
    for path in sorted(run.rglob("*.safetensors")):
        header = lineage.read_header(path)
        assert header is not None
        of_kind.setdefault(header["isp"], []).append(path)
    taken, cases = [], 0
    for stage, options in calls(*CLIP):
        for key, _, ours in inputs(stage, options):
            if run not in ours.parents:
                continue
            header = lineage.read_header(ours)
            assert header is not None
            for foreign in of_kind[header["isp"]]:
                if foreign != ours:
                    cases += 1
                    with Put(foreign, ours):
                        said = refusal(stage, options)
                    if not said.startswith(f"{ours}: was made as '{foreign}'"):
                        taken.append((stage, key, foreign, said))
    assert not taken
    assert cases > 150


def only(stage: str, output: str) -> dict[str, Any]:
    """The call of a stage in the first run that writes a file."""
    run = Path(RUNS) / "clip_tiny/digits/seed0"
    return next(options for name, options in calls(*CLIP) if name == stage and options.get("output") == run / output)


EVALUATE, TICKET = "one_shot/0.5000/metrics.json", "one_shot/0.5000/ticket.safetensors"


def test_a_link_to_the_ticket_of_another_cell_is_refused(here: Path) -> None:
    options = only("evaluate", EVALUATE)
    ticket, other = options["ticket"], Path(str(options["ticket"]).replace("one_shot", "random"))
    ticket.unlink()
    ticket.symlink_to(other.absolute())
    with pytest.raises(ArtifactError, match=f"{ticket}: was made as '{other}' and does not belong here"):
        evaluate(**options)


def test_places_are_the_same_outside_of_results() -> None:
    """The name of a study may end in "runs"."""
    inside, moved = "results/my.runs/runs/b/t/seed0/m", "runs/b/t/seed0/m"
    assert lineage._is_same_place(inside, moved)
    assert lineage._is_same_place(moved, inside)
    assert lineage._is_same_place(moved, moved)
    assert not lineage._is_same_place(inside, "results/runs/runs/b/t/seed0/m")
    assert not lineage._is_same_place(inside, "runs/b/t/seed1/m")


def test_a_ticket_that_was_written_anew_in_another_place_is_refused(here: Path) -> None:
    """Its origin says what it was made for, whatever writes it."""
    options = only("evaluate", EVALUATE)
    other = Path(str(options["ticket"]).replace("one_shot", "random"))
    save_ticket(options["ticket"], load_ticket(other))
    with pytest.raises(ArtifactError, match=f"was made as '{other}'"):
        evaluate(**options)


def test_a_ticket_of_another_sparsity_is_refused(here: Path) -> None:
    options = only("evaluate", EVALUATE)
    output = Path(str(options["output"]).replace("0.5000", "0.6000"))
    with pytest.raises(ArtifactError, match=r"was made for sparsity '0.5000', but it is '0.6000' needed here"):
        evaluate(**options | {"output": output})
    assert not output.exists()


@pytest.mark.parametrize("inside", [True, False])
def test_a_mask_of_another_sparsity_is_refused_before_training(here: Path, inside: bool) -> None:
    options = only("retrain", TICKET) | {"sparsity": "0.6"}
    options |= {} if inside else {"output": Path("elsewhere/ticket.safetensors")}
    with pytest.raises(ArtifactError, match=r"mask.safetensors: must be a mask of sparsity 0.6000, got 0.5000"):
        retrain(**options)
    assert inside or not options["output"].exists()


def test_a_state_of_another_protocol_is_refused_in_a_study(here: Path) -> None:
    """The initial state serves all protocols; a segment of training continues under the same one."""
    other = {"training": TRAINING | {"batch_size": 16}}
    make("finetune_dense", only("finetune_dense", "dense/pretrained.safetensors") | other)
    with pytest.raises(ArtifactError, match=r"for training \{'batch_size': 8\}, but it is \{'batch_size': 16\} needed"):
        retrain(**only("retrain", "isp/0.5000/ticket.safetensors") | other)


def test_an_input_that_was_replaced_after_a_mask_was_made_of_it_is_refused(here: Path) -> None:
    """The same cell, but other weights. The same weights again, of another run of the stage, are accepted."""
    initial, ticket = only("initialise", "initial/pretrained.safetensors"), only("retrain", TICKET)
    make("initialise", initial)
    retrain(**ticket)
    make("initialise", initial | {"initial": "random"})
    with pytest.raises(ArtifactError, match=f"{ticket['mask']}: was made from another {ticket['start']} than"):
        retrain(**ticket)


def test_by_hand_seeds_may_be_mixed_but_not_backbones(here: Path) -> None:
    mask = str(only("retrain", TICKET)["mask"])
    by_hand = only("retrain", TICKET) | {"output": Path("elsewhere/ticket.safetensors")}
    retrain(**by_hand | {"mask": Path(mask.replace("seed0", "seed1"))})
    assert load_ticket("elsewhere/ticket.safetensors").method == "one_shot"
    with pytest.raises(ArtifactError, match="was made for backbone 'bert_tiny', but it is 'clip_tiny' needed here"):
        retrain(**by_hand | {"mask": Path(mask.replace("clip_tiny/digits", "bert_tiny/half_order"))})


def test_a_study_that_was_moved_is_read_where_it_is(here: Path) -> None:
    """An archive of a study; within it, the places of artifacts are still checked."""
    shutil.copytree("results/study", "archive")
    ticket = Path("archive/runs/clip_tiny/digits/seed0") / TICKET
    lineage.check(Path("x"), {}, [ticket])
    shutil.copy(str(ticket).replace("one_shot", "random"), ticket)
    with pytest.raises(ArtifactError, match="does not belong here"):
        lineage.check(Path("x"), {}, [ticket])


# --- records ----------------------------------------------------------------------------------------------------------

VARIANTS = {"one_shot": ["0.5000"], "random": ["0.5000"]}
CELLS = Blocks([{"backbone": "clip_tiny", "tasks": ["digits"], "seeds": [0], "variants": VARIANTS}])


def collected() -> Mapping[str, Mapping[str, str]]:
    similarity = [Path(RUNS) / "clip_tiny/digits/seed0/similarity.json"]
    collect(Path(RUNS), CELLS, Path("results/study"), similarity)
    return {row["variant"]: row for row in files.read_csv(Path("results/study/metrics.csv"), "collect")}


@pytest.mark.parametrize(
    ("key", "value"), [("variant", "random"), ("sparsity", "0.9000"), ("seed", 1), ("task", "mnist"), ("study", "x")]
)
def test_a_record_that_names_another_cell_is_refused(here: Path, key: str, value: Any) -> None:
    path = only("evaluate", EVALUATE)["output"]
    record = json.loads(path.read_text())
    assert set(collected()) == {"one_shot", "random"}
    path.write_text(json.dumps(record | {key: value}))
    with pytest.raises(ArtifactError, match=f"{path}: must be a record of {key} {record[key]!r}, got {value!r}"):
        collected()
    path.write_text("[]")
    with pytest.raises(ArtifactError, match=f"{path}: .*; delete it and remake it"):
        collected()


def test_a_comparison_of_another_run_is_refused(here: Path) -> None:
    run = f"{RUNS}/clip_tiny/digits/seed"
    shutil.copy(f"{run}1/similarity.json", f"{run}0/similarity.json")
    with pytest.raises(ArtifactError, match=r"seed0/similarity.json: must be a record of seed 0, got 1"):
        collected()


def test_a_record_of_another_ticket_than_there_is_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the times of the files say. A ticket that was deleted to save room is not missed."""
    path, ticket = only("evaluate", EVALUATE)["output"], load_ticket(only("evaluate", EVALUATE)["ticket"])
    ticket.weights[next(iter(ticket.mask))].mul_(0.9)
    save_ticket(only("evaluate", EVALUATE)["ticket"], ticket)
    with pytest.raises(ArtifactError, match=f"{path}: scores an earlier version of .*ticket.safetensors"):
        collected()
    only("evaluate", EVALUATE)["ticket"].unlink()
    collected()
    record = json.loads(path.read_text())
    del record["ticket"]  # as earlier versions wrote it
    path.write_text(json.dumps(record))
    capsys.readouterr()
    collected()
    assert "accepted 1 of 2 records from a version of isp that did not record which ticket" in capsys.readouterr().err


# --- artifacts of earlier versions ------------------------------------------------------------------------------------


def as_format_2(path: Path) -> None:
    """Rewrite an artifact as an earlier version did: one checksum, no place, no digests of what it was made from."""
    header = lineage.read_header(path)
    assert header is not None
    tensors, _ = artifacts._read(path, header["isp"])
    for about in (header["about"], header["about"].get("origin", {})):
        for key in ("place", "contents"):
            about.pop(key, None)
    rest = {key: value for key, value in header.items() if key not in ("content", "checksum")} | {"format": 2}
    text = json.dumps(rest, separators=(",", ":"))
    sealed = {**rest, "checksum": artifacts._digest(tensors, "blake2b", text)}
    metadata = {"isp": json.dumps(sealed, separators=(",", ":"))}
    files.write_bytes(path, b"".join(artifacts._serialized(tensors, metadata)))


def test_artifacts_of_earlier_versions_are_accepted_with_a_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their own entries are still checked."""
    for path in here.rglob("*.safetensors"):
        as_format_2(path)
    for stage, options in calls(*CLIP):
        if stage in ("retrain", "average_members", "pool_tickets", "evaluate", "compare_masks", "prune_denoised"):
            capsys.readouterr()
            make(stage, options)
            said = capsys.readouterr().err
            assert said.count("from a version of isp that did not record the cell") == 1, stage
            if "output" in options and options["output"].suffix == ".safetensors":
                as_format_2(options["output"])
    record = only("evaluate", EVALUATE)
    shutil.copy(str(record["ticket"]).replace("clip_tiny/digits", "bert_tiny/half_order"), record["ticket"])
    with pytest.raises(ArtifactError, match="for backbone 'bert_tiny', but it is 'clip_tiny' needed here"):
        evaluate(**record)


def test_a_mask_of_another_backbone_that_does_not_say_so_is_no_traceback(here: Path) -> None:
    """As earlier versions wrote masks of rounds: whole, but silent; then it is the parameters that do not fit."""
    theirs = by_output(BERT)
    for path in here.rglob("*mask.safetensors"):
        mask, about = artifacts.load_mask(path)
        silent = {key: about[key] for key in ("rounds", "cost", "measured") if key in about}
        artifacts.save_mask(path, mask, silent)
    cases = 0
    for stage, options in calls(*CLIP):
        both = zip(inputs(stage, options), inputs(*theirs[name_of(stage, options)]), strict=True)
        for (key, _, ours), (_, _, foreign) in both:
            if key in ("mask", "within"):
                cases += 1
                with Put(foreign, ours):
                    assert "parameter" in refusal(stage, options), stage
    assert cases == 7
