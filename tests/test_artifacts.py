from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from isp import artifacts, cli, files, masks
from isp.backbones import Pretrained
from isp.data.splits import Split
from isp.errors import ArtifactError, IspError, MaskError
from isp.runtime import verified
from isp.tickets import Ticket
from isp.training import State, Trainer, state_of
from isp.workflow.rules import made_by
from tests.support.models import same

MakeTrainer = Callable[..., Trainer]
GENERATOR = torch.Generator().manual_seed(0)
MASK = {"b.weight": torch.rand(30, 7, generator=GENERATOR) < 0.5, "a.weight": torch.rand(5, generator=GENERATOR) < 0.5}


def test_a_mask_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "mask.safetensors"
    artifacts.save_mask(path, MASK, {"settings": {"rate": 0.2}})
    mask, about = artifacts.load_mask(path, MASK)
    assert all(torch.equal(mask[name], MASK[name]) for name in MASK)
    assert about["settings"] == {"rate": 0.2}
    assert about["made_with"]["torch"] == torch.__version__.split("+")[0]


def test_the_header_says_what_it_holds(tmp_path: Path) -> None:
    artifacts.save_mask(tmp_path / "mask", MASK, {})
    with safe_open(tmp_path / "mask", "pt") as file:
        header = json.loads(file.metadata()["isp"])
    assert header["isp"] == "mask"
    assert header["shapes"] == {"a.weight": [5], "b.weight": [30, 7]}
    assert (header["kept"], header["weights"]) == (masks.num_kept(MASK), 215)


def test_a_mask_takes_one_bit_a_weight(tmp_path: Path) -> None:
    """The sizes and names of CLIP ViT-B/32 with an eighth of its width, under real provenance."""
    shapes = {"attn.in_proj_weight": (288, 96), "attn.out_proj.weight": (96, 96)}
    shapes |= {"mlp.c_fc.weight": (384, 96), "mlp.c_proj.weight": (96, 384)}
    mask = {
        f"visual.transformer.resblocks.{block}.{name}": torch.rand(shape) < 0.1
        for block in range(12)
        for name, shape in shapes.items()
    }
    artifacts.save_mask(tmp_path / "mask", mask, {"method": "isp", "sparsity": "0.9000"})
    assert (tmp_path / "mask").stat().st_size <= 1.02 * masks.num_weights(mask) / 8 + 4096


def test_a_state_there_and_back_to_the_bit(tmp_path: Path, make: MakeTrainer) -> None:
    trainer = make()
    state, _ = trainer.run(state_of(trainer.model), 5)
    artifacts.save_state(tmp_path / "state", state, {})
    back, _ = artifacts.load_state(tmp_path / "state")
    assert same(state, back)
    assert same(trainer.run(back, 9)[0], trainer.run(state, 9)[0])


def test_a_checkpoint_there_and_back(tmp_path: Path) -> None:
    path, content = tmp_path / "a.safetensors", {"dict": {"state": {"tensor": "0", "device": "cpu"}}}
    artifacts.save_checkpoint(path, {"0": torch.arange(3)}, content, {"seconds": 2.5})
    tensors, loaded, about = artifacts.load_checkpoint(path)
    assert (tensors["0"].tolist(), loaded, about["seconds"]) == ([0, 1, 2], content, 2.5)


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        artifacts.save_mask(tmp_path / name, MASK, {"method": "isp"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no such mask file; make it first$") as error:
        artifacts.load_mask(tmp_path / "mask")
    assert error.value.kind == "mask"


@pytest.mark.parametrize(
    "load",
    [
        *(artifacts.load_ticket, artifacts.load_ticket_mask, artifacts.load_mask),
        *(artifacts.load_state, artifacts.load_state_mask),
        *(artifacts.load_weights, artifacts.load_backbone, artifacts.load_split, artifacts.load_checkpoint),
        lambda path: artifacts.load_examples(path, "train"),
    ],
)
def test_what_is_no_file(tmp_path: Path, load: Callable[[Path], object]) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone").symlink_to("nowhere")
    for name, problem in {
        "folder": r"must be a \w+ file \(Is a directory\)",
        "pipe": r"must be a \w+ file \(not a regular file\)",
        "gone": r"no such \w+ file; make it first",
        "a\0b": r"must be a \w+ file \(embedded null byte\)",
    }.items():
        with pytest.raises(ArtifactError, match=problem) as error:
            load(tmp_path / name)
        assert made_by(error.value.kind) or error.value.kind == "checkpoint"


@pytest.mark.parametrize("wanted", ["train", "validation", "test"])
@pytest.mark.parametrize("there", ["train", "validation", "test"])
def test_swapped_parts_are_refused(tmp_path: Path, there: artifacts.Part, wanted: artifacts.Part) -> None:
    """Also with contents that are as they were written."""
    artifacts.save_examples(tmp_path / "x", {"labels": torch.arange(3)}, there, {})
    if there == wanted:
        assert artifacts.load_examples(tmp_path / "x", wanted)[0]["labels"].tolist() == [0, 1, 2]
        return
    message = f"x: contains {there} examples, but {wanted} examples are needed here; give the other file"
    with pytest.raises(ArtifactError, match=message):
        artifacts.load_examples(tmp_path / "x", wanted)


def test_truncated_at_every_length(tmp_path: Path) -> None:
    path = tmp_path / "mask"
    artifacts.save_mask(path, MASK, {})
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=r"mask: .*remake it") as error:
            artifacts.load_mask(path)
        assert error.value.kind == "mask"


def test_altered(tmp_path: Path) -> None:
    path = tmp_path / "mask"
    artifacts.save_mask(path, MASK, {})
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x80
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="checksum does not match"):
        artifacts.load_mask(path)


def alter(path: Path, position: int, value: int) -> None:
    """Replace one byte of a file in place, which is quicker than writing all of it."""
    with path.open("r+b") as file:
        file.seek(position)
        file.write(bytes([value]))


def test_no_altered_byte_is_accepted_or_breaks_the_reader(tmp_path: Path) -> None:
    """Every byte, header and tensors alike: an `ArtifactError` that names the file, or the very same content."""
    path = tmp_path / "mask"
    artifacts.save_mask(path, MASK, {"note": "x"})
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):
        alter(path, position, whole[position] ^ 1)
        with suppress(ArtifactError):  # any other error fails the test
            mask, about = artifacts.load_mask(path)
            assert all(torch.equal(mask[name], MASK[name]) for name in MASK)
            assert about["note"] == "x"
        alter(path, position, whole[position])
    assert path.read_bytes() == whole


def test_foreign_and_of_another_kind(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "foreign")
    with pytest.raises(ArtifactError, match="that isp did not write"):
        artifacts.load_mask(tmp_path / "foreign")
    artifacts.save_weights(tmp_path / "weights", {"x": torch.zeros(2)}, {})
    with pytest.raises(ArtifactError, match=r"contains weights, but mask is needed here$"):
        artifacts.load_mask(tmp_path / "weights")
    torch.save({"x": torch.zeros(2)}, tmp_path / "pickle")
    with pytest.raises(ArtifactError, match="not a safetensors file"):
        artifacts.load_weights(tmp_path / "pickle")


def test_a_mask_for_another_model(tmp_path: Path) -> None:
    artifacts.save_mask(tmp_path / "mask", MASK, {})
    with pytest.raises(MaskError, match=r"mask is a mask for another one\): parameter 'b.weight' has shape"):
        artifacts.load_mask(tmp_path / "mask", MASK | {"b.weight": torch.zeros(7, 30)})


def test_a_ticket_whose_masked_weights_are_not_zero_is_refused(tmp_path: Path) -> None:
    weights = {name: torch.ones(mask.shape) for name, mask in MASK.items()}
    artifacts.save_ticket(
        tmp_path / "ticket", Ticket(method="isp", sparsity=Decimal("0.5"), mask=MASK, weights=weights)
    )
    with pytest.raises(ArtifactError, match="masked weights that are not zero"):
        artifacts.load_ticket(tmp_path / "ticket")


def ticket_of(mask: masks.Mask, weights: dict[str, torch.Tensor]) -> Ticket:
    return Ticket(method="isp", sparsity=Decimal("0.5"), mask=mask, weights=weights, rounds=[{"round": 0}])


def entries(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return sorted(file.keys())


def bits_of(tensor: torch.Tensor) -> list[int]:
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128)
TYPES += (torch.int8, torch.uint16, torch.bool, torch.float8_e5m2, torch.float8_e8m0fnu)
ANY_MODEL = st.lists(
    st.tuples(st.sampled_from(TYPES), st.sampled_from([(), (0,), (3,), (4, 5), (2, 3, 2)]), st.booleans()), max_size=5
)


@given(model=ANY_MODEL, sparsity=st.sampled_from([0.0, 0.3, 0.9, 1.0]), seed=st.integers(0, 2**16), minus=st.booleans())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_ticket_there_and_back_to_the_bit(
    tmp_path: Path,
    model: list[tuple[torch.dtype, tuple[int, ...], bool]],
    sparsity: float,
    seed: int,
    minus: bool,
) -> None:
    """Of all types and shapes, of none and of all weights, with names of paths and a tensor under two names."""
    generator = torch.Generator().manual_seed(seed)
    mask: masks.Mask = {}
    weights: dict[str, torch.Tensor] = {}
    for number, (dtype, shape, prunable) in enumerate(model):
        name, size = f"block/{9 - number}.weight", math.prod(shape) * dtype.itemsize
        content = torch.randint(2 if dtype == torch.bool else 100, (size,), dtype=torch.uint8, generator=generator)
        weights[name] = content.view(dtype).reshape(shape)
        if prunable:
            mask[name] = torch.rand(shape, generator=generator) >= sparsity
            words = weights[name].reshape(-1).view(torch.uint8).view(math.prod(shape), dtype.itemsize).clone()
            words[~mask[name].reshape(-1)] = 0
            if minus and dtype.is_floating_point and dtype != torch.float8_e8m0fnu:
                words[:, -1] += (~mask[name].reshape(-1)) * 128  # -0.0, which a product with a mask may leave
            weights[name] = words.reshape(-1).view(dtype).reshape(shape)
            weights[f"tied.{number}"] = weights[name]
    artifacts.save_ticket(tmp_path / "ticket", ticket_of(mask, weights))
    back = artifacts.load_ticket(tmp_path / "ticket")
    assert list(back.mask) == sorted(mask)
    assert all(torch.equal(back.mask[name], mask[name]) for name in mask)
    assert list(back.weights) == sorted(weights)
    for name, tensor in weights.items():
        assert (back.weights[name].dtype, back.weights[name].shape) == (tensor.dtype, tensor.shape)
        assert bits_of(back.weights[name]) == bits_of(tensor)
    assert (back.method, back.sparsity, back.rounds) == ("isp", Decimal("0.5"), [{"round": 0}])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.95])
def test_a_ticket_takes_what_its_information_takes(tmp_path: Path, dtype: torch.dtype, sparsity: float) -> None:
    """Its kept and unpruned values, and a bit for each prunable weight; sizes and names of ViT-B/32 at a quarter."""
    shapes = {"attn.in_proj_weight": (576, 192), "attn.out_proj.weight": (192, 192)}
    shapes |= {"mlp.c_fc.weight": (768, 192), "mlp.c_proj.weight": (192, 768)}
    names = {f"visual.transformer.resblocks.{b}.{name}": shape for b in range(4) for name, shape in shapes.items()}
    mask = {name: torch.rand(shape) >= sparsity for name, shape in names.items()}
    weights = {name: torch.randn(kept.shape).masked_fill_(~kept, 0).to(dtype) for name, kept in mask.items()}
    weights["visual.conv1.weight"] = torch.randn(192, 3, 32, 32, dtype=dtype)
    artifacts.save_ticket(tmp_path / "ticket", ticket_of(mask, weights))
    values = masks.num_kept(mask) + 192 * 3 * 32 * 32
    limit = dtype.itemsize * values + masks.num_weights(mask) / 8
    assert (tmp_path / "ticket").stat().st_size <= 1.02 * limit + 64_000


def test_twenty_lines_of_numpy_read_a_ticket(tmp_path: Path) -> None:
    """Those in its description."""
    text = (Path(__file__).parents[1] / "docs/reference/tickets.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) <= 25
    weights = {name: torch.randn(kept.shape).masked_fill_(~kept, 0) for name, kept in MASK.items()}
    weights |= {"a.bias": torch.randn(3).half(), "steps": torch.tensor(7)}
    artifacts.save_ticket(tmp_path / "ticket", ticket_of(MASK, weights))
    defined: dict[str, Any] = {}
    exec(code, defined)
    found, mask = defined["read_ticket"](tmp_path / "ticket")
    assert found.keys() == weights.keys()
    assert all(bits_of(torch.tensor(found[name])) == bits_of(weights[name]) for name in weights)
    assert all(np.array_equal(mask[name], kept.numpy()) for name, kept in MASK.items())


def test_a_ticket_of_an_earlier_format_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Format 3 held all weights whole, the masked ones as zeros."""
    weights = {name: torch.where(mask, 1.5, 0.0) for name, mask in MASK.items()}
    artifacts.save_ticket(tmp_path / "new", ticket_of(MASK, weights))
    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "FORMAT", 3)
        patch.setattr(artifacts, "compress", lambda tensors, kept: [None] * len(tensors))
        artifacts.save_ticket(tmp_path / "old", ticket_of(MASK, weights))
    assert entries(tmp_path / "old") == ["mask.bits", "weights/a.weight", "weights/b.weight"]
    assert entries(tmp_path / "new") == ["kept/weights/a.weight", "kept/weights/b.weight", "mask.bits"]
    old, new = (artifacts.load_ticket(tmp_path / name) for name in ("old", "new"))
    assert all(bits_of(old.weights[name]) == bits_of(new.weights[name]) for name in weights)
    assert all(torch.equal(old.mask[name], new.mask[name]) for name in MASK)
    assert artifacts.load_ticket_mask(tmp_path / "old")[1]["method"] == "isp"
    monkeypatch.setattr(artifacts, "FORMAT", 6)
    artifacts.save_ticket(tmp_path / "later", ticket_of(MASK, weights))
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match="later: format must be 4 for this version, got 6"):
        artifacts.load_ticket(tmp_path / "later")


def test_a_ticket_whose_mask_is_for_another_model_is_not_written(tmp_path: Path) -> None:
    weights = {"a.weight": torch.zeros(5), "b.weight": torch.zeros(7, 30)}
    with pytest.raises(MaskError, match=r"does not fit the ticket's weights: parameter 'b.weight' has shape"):
        artifacts.save_ticket(tmp_path / "ticket", ticket_of(MASK, weights))
    assert not list(tmp_path.iterdir())


def test_values_that_do_not_fit_the_mask_are_refused(tmp_path: Path) -> None:
    """Under checksums that are right: somebody wrote them."""
    fields = artifacts._mask_header(MASK)
    for stored in ("kept/weights/a.weight", "kept/weights/c.weight"):
        artifacts._write(tmp_path / "x", "ticket", {stored: torch.ones(99), "mask.bits": masks.pack(MASK)}, fields, {})
        with pytest.raises(ArtifactError, match=f"x: the values of '{stored[5:]}' do not fit its mask; delete it"):
            artifacts.load_ticket(tmp_path / "x")


def test_a_state_under_a_mask_stores_nothing_of_masked_weights(tmp_path: Path, make: MakeTrainer) -> None:
    """Weights and moments, which the loop leaves at exactly +0.0; everything comes back to the bit, and to training."""
    trainer = make()
    begun, _ = trainer.run(state_of(trainer.model), 3)
    mask = masks.prune_by_magnitude(trainer.prunable_weights(begun), Decimal("0.9"))
    state, _ = trainer.run(begun, 8, mask)
    artifacts.save_state(tmp_path / "whole", state, {})
    artifacts.save_state(tmp_path / "state", state, {"about": "it"}, mask)
    kept = {f"{part}/{name}" for name in mask for part in ("weights",)}
    kept |= {f"optimizer/{name}/{key}" for name in mask for key in ("exp_avg", "exp_avg_sq")}
    assert {name.removeprefix("kept/") for name in entries(tmp_path / "state") if name.startswith("kept/")} == kept
    whole, sparse = ((tmp_path / name).stat().st_size for name in ("whole", "state"))
    assert whole - sparse > 0.85 * 3 * 4 * 592
    back, about = artifacts.load_state(tmp_path / "state")
    assert about["about"] == "it"
    assert same(state, back)
    under = artifacts.load_state_mask(tmp_path / "state")
    assert under is not None
    assert all(torch.equal(under[name], mask[name]) for name in mask)
    assert under.keys() == mask.keys()
    assert artifacts.load_state_mask(tmp_path / "whole") is None
    assert [list(part) for part in (back.weights, back.optimizer)] == [
        list(part) for part in (artifacts.load_state(tmp_path / "whole")[0].weights, back.optimizer)
    ]
    for name in mask:
        assert bits_of(back.weights[name]) == bits_of(state.weights[name])
        for key in ("exp_avg", "exp_avg_sq"):
            assert bits_of(back.optimizer[name][key]) == bits_of(state.optimizer[name][key])
    assert same(trainer.run(back, 11, mask)[0], trainer.run(state, 11, mask)[0])


def lent(folder: Path, weights: dict[str, torch.Tensor]) -> artifacts.WeightsFile:
    """A weights file of a backbone in the folder `resources`."""
    path = folder / "resources/weights"
    artifacts.save_backbone(path, Pretrained(weights=weights, architecture={}), {})
    return artifacts.WeightsFile(path, weights)


def test_a_state_borrows_what_the_weights_file_has_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: MakeTrainer
) -> None:
    """Whatever the names; but not 0.0 for -0.0, nor another shape or type. No two tensors share memory."""
    one = torch.ones(3)
    has = {"x.w": torch.randn(500, 10), "scale": one, "zero": torch.zeros(4), "flat": torch.ones(12)}
    weights = {
        "tower.x.w": has["x.w"].clone(),
        **{"norm1": one.clone(), "norm2": one.clone(), "head": torch.randn(2)},
        **{"negative": -torch.zeros(4), "shaped": torch.ones(3, 4), "half": torch.ones(12, dtype=torch.bfloat16)},
    }
    state = State(step=7, weights=weights)
    path = tmp_path / "results/state"
    artifacts.save_state(path, state, {"stage": "initialise"}, weights_file=lent(tmp_path, has))
    artifacts.save_state(tmp_path / "whole", state, {"stage": "initialise"})
    assert entries(path) == ["weights/half", "weights/head", "weights/negative", "weights/shaped"]
    back, about = artifacts.load_state(path)
    whole, _ = artifacts.load_state(tmp_path / "whole")
    assert (back.step, about["stage"], list(back.weights)) == (7, "initialise", list(whole.weights))
    assert all(bits_of(back.weights[name]) == bits_of(weights[name]) for name in weights)
    assert len({tensor.untyped_storage().data_ptr() for tensor in back.weights.values()}) == len(weights)
    assert path.stat().st_size < 4000 < (tmp_path / "whole").stat().st_size
    # Seen from elsewhere, and with the results behind a link.
    (tmp_path / "results").rename(tmp_path / "moved")
    (tmp_path / "project").mkdir()
    (tmp_path / "resources").rename(tmp_path / "project/resources")
    (tmp_path / "project/results").symlink_to(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "project")
    back, _ = artifacts.load_state(Path("results/state"))
    assert bits_of(back.weights["tower.x.w"]) == bits_of(has["x.w"])


def test_a_state_without_the_weights_that_it_was_made_from_is_refused(tmp_path: Path) -> None:
    has = {"a": torch.randn(30), "b": torch.randn(20)}
    artifacts.save_state(tmp_path / "state", State(step=0, weights=dict(has)), {}, weights_file=lent(tmp_path, has))
    lent(tmp_path, {**has, "c": torch.randn(5)})  # made again, with more in it
    assert same(artifacts.load_state(tmp_path / "state")[0], State(step=0, weights=has))
    for other in ({"a": has["a"]}, {**has, "a": has["a"] + 1}):
        lent(tmp_path, other)
        with pytest.raises(ArtifactError, match=r"state: was made from weights that .*weights no longer contains"):
            artifacts.load_state(tmp_path / "state")
    (tmp_path / "resources/weights").unlink()
    with pytest.raises(ArtifactError, match="resources/weights: no such backbone file; make it first"):
        artifacts.load_state(tmp_path / "state")


def test_a_state_that_has_nothing_in_common_with_the_weights_file_is_whole(tmp_path: Path) -> None:
    file = lent(tmp_path, {"a": torch.randn(30)})
    artifacts.save_state(tmp_path / "state", State(step=0, weights={"a": torch.randn(30)}), {}, weights_file=file)
    file.path.unlink()
    artifacts.load_state(tmp_path / "state")


def test_a_state_that_is_not_zero_where_a_mask_is_comes_back_to_the_bit(tmp_path: Path, make: MakeTrainer) -> None:
    trainer = make()
    state, _ = trainer.run(state_of(trainer.model), 3)
    mask = masks.prune_by_magnitude(trainer.prunable_weights(state), Decimal("0.9"))
    artifacts.save_state(tmp_path / "state", state, {}, mask)
    assert same(state, artifacts.load_state(tmp_path / "state")[0])


def test_the_mask_of_a_ticket_is_read_without_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "ticket"
    weights = {name: torch.where(mask, 1.0, 0.0) for name, mask in MASK.items()}
    artifacts.save_ticket(path, Ticket(method="isp", sparsity=Decimal("0.5"), mask=MASK, weights=weights))
    mask, about = artifacts.load_ticket_mask(path)
    assert all(torch.equal(mask[name], MASK[name]) for name in MASK)
    assert about["method"] == "isp"
    content = bytearray(path.read_bytes())  # weights of four bytes, aligned, come before the bits of the mask
    bits = masks.pack(MASK).numpy().tobytes()
    place = len(content) - len(bits)
    assert content[place:] == bits
    damaged = content.copy()
    damaged[place - 1] ^= 1
    path.write_bytes(damaged)
    artifacts.load_ticket_mask(path)  # a weight, which nobody reads
    with pytest.raises(ArtifactError, match="checksum does not match"):
        artifacts.load_ticket(path)
    content[place] ^= 0x80
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"its mask was altered or damaged, because it keeps \d+ weights"):
        artifacts.load_ticket_mask(path)
    path.write_bytes(content[:-1])
    with pytest.raises(ArtifactError, match=r"truncated .*; delete it and remake it$"):
        artifacts.load_ticket_mask(path)
    artifacts.save_mask(path, MASK, {})
    with pytest.raises(ArtifactError, match="contains mask, but ticket is needed here"):
        artifacts.load_ticket_mask(path)


def save_some(kind: str, path: Path) -> None:
    """Write a small artifact of a kind that stays (a mask), or of one that serves the next jobs only (a state)."""
    if kind == "mask":
        artifacts.save_mask(path, MASK, {})
    else:
        artifacts.save_state(path, State(step=1, weights={"w": torch.arange(1.0, 5001)}), {})


@pytest.mark.parametrize(("kind", "where"), [("mask", "fsync"), ("state", "dup")])
def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, where: str
) -> None:
    """Also if the disk reports it only when it is told to write, or when the file is closed."""
    path = tmp_path / kind
    path.write_text("before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, where, full)
    with pytest.raises(IspError, match=rf"{kind}: cannot be written \(No space left on device\)"):
        save_some(kind, path)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == [kind]


@pytest.mark.parametrize(("kind", "synced"), [("mask", True), ("state", False)])
def test_only_what_stays_waits_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, synced: bool
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(os, "fsync", calls.append)
    save_some(kind, tmp_path / kind)
    assert bool(calls) == synced


def test_a_state_that_a_crash_of_the_machine_left_torn_is_refused(tmp_path: Path) -> None:
    """States are not synced: the disk may have their size, but zeros in place of any block of 512 bytes."""
    path = tmp_path / "state"
    save_some("state", path)
    whole = path.read_bytes()
    for begin in range(0, len(whole), 512):
        path.write_bytes(whole[:begin] + bytes(len(whole[begin : begin + 512])) + whole[begin + 512 :])
        with pytest.raises(ArtifactError, match=r"state: .*remake it"):
            artifacts.load_state(path)
    for torn in (b"", bytes(len(whole)), whole[:512] + bytes(len(whole) - 512)):
        path.write_bytes(torn)
        with pytest.raises(ArtifactError, match=r"state: .*remake it"):
            artifacts.load_state(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(IspError, match="cannot be written"):
        artifacts.save_mask(tmp_path / "mask", MASK, {})


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(IspError, match="cannot be written"):
        files.write_json(tmp_path / "file" / "metrics.json", {})


@pytest.mark.parametrize("way", ["xxh3", "blake2b", "sums"])
def test_examples_are_held_to_header_and_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Every byte is altered once, under each digest that files have; the last two are those of earlier versions."""
    if way != artifacts.WAY:
        monkeypatch.setattr(artifacts, "WAY", way)
    path = tmp_path / "examples"
    tensors = {"pixels": torch.arange(800).remainder(251).to(torch.uint8).reshape(100, 8)}
    artifacts.save_examples(path, tensors, "test", {"task": "digits"})
    assert torch.equal(artifacts.load_examples(path, "test")[0]["pixels"], tensors["pixels"])
    whole = path.read_bytes()
    assert f"{way}:".encode() in whole
    for position in range(len(whole)):
        alter(path, position, whole[position] ^ 1)
        with suppress(ArtifactError):  # any other error fails the test
            found, about = artifacts.load_examples(path, "test")
            assert torch.equal(found["pixels"], tensors["pixels"])
            assert about["task"] == "digits"
        alter(path, position, whole[position])
    assert path.read_bytes() == whole
    path.write_bytes(whole[:-1])
    with pytest.raises(ArtifactError, match="truncated"):
        artifacts.load_examples(path, "test")


def test_test_examples_never_pass_for_training_ones(tmp_path: Path) -> None:
    """Not even with the part in their header altered."""
    path = tmp_path / "examples"
    artifacts.save_examples(path, {"pixels": torch.zeros(100, 8)}, "test", {})
    whole = path.read_bytes()
    altered = whole.replace(rb"\"part\":\"test\"", rb"\"part\":\"train\"").replace(rb"\"format\":", rb"\"forma\":")
    assert len(altered) == len(whole)
    assert altered != whole
    path.write_bytes(altered)
    with pytest.raises(ArtifactError, match="checksum does not match"):
        artifacts.load_examples(path, "train")


def test_the_digest_by_hand() -> None:
    """XXH3 over name, type, shape and bytes, tensors in the order of their names; what moves between them is seen."""
    tensors = {"b": torch.tensor([[1, 2]], dtype=torch.uint8), "a": torch.tensor([3], dtype=torch.uint8)}
    expected = xxhash.xxh3_128_hexdigest(
        b"a\x1ftorch.uint8\x1f(1,)\x1f" + b"\x03" + b"b\x1ftorch.uint8\x1f(1, 2)\x1f" + b"\x01\x02"
    )
    assert artifacts._content(tensors, "xxh3") == f"xxh3:{expected}"


def test_sums_of_blocks() -> None:
    """Two blocks of two words, of which the second overflows; three bytes are left."""
    words = [1, 2, 2**64 - 1, 3]
    content = b"".join(word.to_bytes(8, "little") for word in words) + b"abc"
    expected = (3).to_bytes(8, "little") + (2).to_bytes(8, "little") + b"abc"
    assert artifacts._sums(memoryview(content), num_words=2) == expected
    assert artifacts._sums(memoryview(b"x" + content)[1:], num_words=2) == expected  # wherever it lies in memory
    assert artifacts._sums(memoryview(b""), num_words=2) == b""


def test_large_examples_of_an_earlier_version_are_accepted_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their one checksum covers the tensors as well. The part in their header is compared all the same."""
    header = {"isp": "examples", "format": 2, "part": "train", "about": {}, "checksum": "of more than is read"}
    metadata = {"isp": json.dumps(header)}
    files.write_bytes(tmp_path / "old", b"".join(artifacts._serialized({"x": torch.ones(99)}, metadata)))
    with pytest.raises(ArtifactError, match="checksum does not match"):
        artifacts.load_examples(tmp_path / "old", "train")
    monkeypatch.setattr(artifacts, "LARGE", 300)
    artifacts.load_examples(tmp_path / "old", "train")
    assert capsys.readouterr().err.count("accepted") == 1
    with pytest.raises(ArtifactError, match="contains train examples, but test examples are needed here"):
        artifacts.load_examples(tmp_path / "old", "test")


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.complex64, torch.complex128, torch.int8, torch.int16, torch.uint16, torch.uint32, torch.uint64),
        *(torch.float16, torch.bfloat16, torch.float64, torch.bool),
        *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu),
    ],
)
@pytest.mark.parametrize("shape", [(), (2, 3), (0, 4)])
def test_tensors_of_every_type_come_back_to_the_bit(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Safetensors lacks complex128 and float8_e8m0fnu: they are bytes there."""
    whole = torch.arange(64, dtype=torch.uint8).fmod(2 if dtype == torch.bool else 99).repeat(2).view(dtype)
    tensor = whole[: math.prod(shape)].reshape(shape)
    artifacts.save_weights(tmp_path / "weights", {"buffer": tensor, "other": torch.ones(2)}, {})
    back = artifacts.load_weights(tmp_path / "weights")[0]["buffer"]
    assert (back.dtype, back.shape) == (dtype, tensor.shape)
    assert torch.equal(back.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
    if dtype.is_complex:
        artifacts.save_weights(tmp_path / "weights", {"buffer": tensor.conj()}, {})
        assert torch.equal(artifacts.load_weights(tmp_path / "weights")[0]["buffer"], tensor.conj())


@pytest.mark.parametrize("dtype", [torch.complex128, torch.float8_e8m0fnu])
def test_tensors_stored_as_bytes_come_back_aligned(tmp_path: Path, dtype: torch.dtype) -> None:
    """Torch's kernels for complex128 crash at an address that is not a multiple of 16."""
    tensor = torch.ones(3, dtype=dtype)
    for num in range(1, 17):  # bytes before it in the file
        artifacts.save_weights(tmp_path / "weights", {"a": torch.ones(num, dtype=torch.uint8), "b": tensor}, {})
        back = artifacts.load_weights(tmp_path / "weights")[0]["b"]
        assert back.data_ptr() % 16 == 0
        assert same_bits(back, tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
@pytest.mark.parametrize("num", [0, 1])
def test_at_most_one_value_with_any_stride_comes_back(tmp_path: Path, dtype: torch.dtype, num: int) -> None:
    tensor = torch.ones(8, dtype=dtype)[::2][:num]
    artifacts.save_weights(tmp_path / "weights", {"buffer": tensor}, {})
    assert same_bits(artifacts.load_weights(tmp_path / "weights")[0]["buffer"], tensor.clone())


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (one.dtype, one.shape, one.tolist()) == (other.dtype, other.shape, other.tolist())


def test_a_file_is_what_safetensors_would_write(tmp_path: Path) -> None:
    """Part by part instead of in one piece."""
    from safetensors.torch import load_file, save

    tensors = {
        "b": torch.randn(3, 4),
        "a": torch.arange(5),
        "ü": torch.tensor([1, 2], dtype=torch.uint8),
        "empty": torch.zeros(0, dtype=torch.bfloat16),
        "one": torch.tensor(True),
    }
    assert b"".join(artifacts._serialized(tensors, {"isp": 'a "word"'})) == save(tensors, {"isp": 'a "word"'})
    artifacts.save_weights(tmp_path / "x", tensors, {})
    found = load_file(tmp_path / "x")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_split_whose_parts_overlap_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.safetensors"
    artifacts.save_split(path, Split(train=np.arange(5), validation=np.arange(4, 7)), {})
    with pytest.raises(ArtifactError, match="1 examples are both for training and for validation, such as 4"):
        artifacts.load_split(path)


def test_the_stages_that_make_a_kind_of_artifact() -> None:
    """Messages name them; they follow from the rules."""
    assert made_by("mask") == "prune_denoised, prune_iterative, prune_one_shot or merge_subnetworks"
    assert made_by("state") == "train_segment, run_rounds or initialise"
    assert made_by("backbone") == "pretrain or convert"
    assert made_by("examples") == "prepare"
    assert made_by("checkpoint") == ""
    run = "results/smoke/runs/clip_tiny/digits/seed0"
    assert made_by("ticket", f"{run}/dense/pretrained.safetensors") == "finetune_dense"
    assert made_by("state", f"/work/{run}/isp/round1/state.safetensors") == "train_segment"
    assert made_by("mask", f"{run}/isp/round1/to0.5000/mask.safetensors") == "prune_denoised or prune_iterative"
    assert made_by("mask", "copied/mask.safetensors") == made_by("mask")


def test_a_damaged_dense_ticket_names_the_stage_that_makes_it(tmp_path: Path) -> None:
    """The message listed all seven stages that make tickets."""
    path = tmp_path / "results/smoke/runs/clip_tiny/digits/seed0/dense/pretrained.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")
    with pytest.raises(ArtifactError) as caught:
        artifacts.load_ticket(path)
    assert cli._made_by(caught.value) == " (stage: finetune_dense)"


EXAMPLES = {"labels": torch.arange(300), "pixels": torch.arange(900).reshape(300, 3).to(torch.uint8)}


@pytest.fixture
def digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the tensors of every digest that is computed, as if under a fork server."""
    (tmp_path / "server").mkdir(mode=0o700)
    monkeypatch.setenv("ISP_WARM", str(tmp_path / "server" / "warm.sock"))
    monkeypatch.setattr(verified, "SETTLED", -1.0)
    computed: list[int] = []
    digest = artifacts._digest

    def counted(tensors: Any, *rest: Any) -> str:
        computed.append(artifacts._size(tensors))
        return digest(tensors, *rest)

    monkeypatch.setattr(artifacts, "_digest", counted)
    return computed


def test_a_run_verifies_shared_files_once(tmp_path: Path, digests: list[int]) -> None:
    """Examples and pre-trained weights; states, which few jobs read, each time."""
    artifacts.save_examples(tmp_path / "x", EXAMPLES, "train", {})
    artifacts.save_backbone(tmp_path / "y", Pretrained(weights=EXAMPLES, architecture={}), {})
    save_some("state", tmp_path / "z")
    digests.clear()
    for _ in range(3):
        for name, tensor in artifacts.load_examples(tmp_path / "x", "train")[0].items():
            assert torch.equal(tensor, EXAMPLES[name])
        artifacts.load_backbone(tmp_path / "y")
    assert len(digests) == 2
    with pytest.raises(ArtifactError, match="x: contains train examples"):
        artifacts.load_examples(tmp_path / "x", "test")
    for _ in range(3):
        artifacts.load_state(tmp_path / "z")
    assert len(digests) == 5


def test_a_verified_file_that_is_altered_is_refused(tmp_path: Path, digests: list[int]) -> None:
    """Every kind of change: in place with its old times, by another file of its size and times, by a link."""
    path = tmp_path / "x"
    artifacts.save_examples(path, EXAMPLES, "train", {})
    whole = path.read_bytes()
    damaged = whole[:-1] + bytes([whole[-1] ^ 1])

    def in_place() -> None:
        with path.open("r+b") as file:
            file.write(damaged)

    def by_another() -> None:
        (tmp_path / "other").write_bytes(damaged)
        os.utime(tmp_path / "other", ns=(times.st_atime_ns, times.st_mtime_ns))
        (tmp_path / "other").replace(path)

    def by_a_link() -> None:
        (tmp_path / "target").write_bytes(damaged)
        path.unlink()
        path.symlink_to(tmp_path / "target")

    for alter in (in_place, by_another, by_a_link):
        path.unlink(missing_ok=True)
        path.write_bytes(whole)
        times = path.stat()
        for _ in range(2):
            artifacts.load_examples(path, "train")
        alter()
        if not path.is_symlink():
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        for _ in range(2):
            with pytest.raises(ArtifactError, match="checksum does not match"):
                artifacts.load_examples(path, "train")


@pytest.mark.parametrize("why", ["new file", "no server", "others may write"])
def test_every_job_verifies_what_cannot_be_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digests: list[int], why: str
) -> None:
    artifacts.save_examples(tmp_path / "x", EXAMPLES, "train", {})
    digests.clear()
    if why == "new file":
        monkeypatch.setattr(verified, "SETTLED", 3600.0)
    elif why == "no server":
        monkeypatch.delenv("ISP_WARM")
    else:
        (tmp_path / "server").chmod(0o777)
    for _ in range(3):
        artifacts.load_examples(tmp_path / "x", "train")
    assert len(digests) == 3
    assert not list((tmp_path / "server").iterdir())
