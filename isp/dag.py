"""The shape of the workflow: every path, and what each job of a study needs. Pure; the rules in `workflow/` ask it.

A cell's jobs share what they have in common: the tensors of a task, the initial state and the dense run of a seed, and
for each variant one chain of rounds; pooled tickets use that of an equal iterative variant, and soups whose members are
equal share those. A prune event of the chain is keyed by (round, sparsity): its sparsity is the nominal one of the
round, where the chain goes on, or a target, which leaves the chain at the first round whose nominal sparsity reaches
it. A target leaves with a mask; training under it gives the ticket. Methods that prune within one run, and rounds that
are not known beforehand, are a job a ticket.
"""

from __future__ import annotations

import importlib
import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, cached_property
from types import ModuleType
from typing import Any, Protocol

from isp import registry, sparsity, training
from isp.config import CHAIN, Study, Variant
from isp.families import Method, chooses, instant, iterative, souped
from isp.methods import isp as soup
from isp.methods import uniform_soup

# --- paths ------------------------------------------------------------------------------------------------------------

MANIFEST = "resources/manifests/{kind}/{name}.json"
SPLIT = "resources/splits/{task}.safetensors"
WEIGHTS = "resources/backbones/{backbone}.safetensors"
PREPARED = "resources/prepared/{backbone}/{task}/{split}.safetensors"

STUDY = "results/{study}"
DESCRIPTION = f"{STUDY}/study.json"
PLAN = f"{STUDY}/plan.json"
RUN = f"{STUDY}/runs/{{backbone}}/{{task}}/seed{{seed}}"
INITIAL = f"{RUN}/initial/{{initial}}.safetensors"
DENSE = f"{RUN}/dense/{{initial}}.safetensors"
REWIND_POINT = f"{RUN}/dense/{{initial}}.step{{step}}.safetensors"
STATE = f"{RUN}/{{variant}}/round{{round}}/state.safetensors"
WEAK = f"{RUN}/{{variant}}/round{{round}}/to{{sparsity}}/weak{{member}}.safetensors"
ROUND_MASK = f"{RUN}/{{variant}}/round{{round}}/to{{sparsity}}/mask.safetensors"
ONE_SHOT_MASK = f"{RUN}/{{variant}}/{{sparsity}}/mask.safetensors"
MEMBER = f"{RUN}/{{variant}}/{{sparsity}}/member{{member}}.safetensors"
SUBNETWORK = f"{RUN}/{{variant}}/{{sparsity}}/subnetwork{{member}}.safetensors"
MERGED = f"{RUN}/{{variant}}/{{sparsity}}/merged.safetensors"
MERGED_MASK = f"{RUN}/{{variant}}/{{sparsity}}/merged_mask.safetensors"
TICKET = f"{RUN}/{{variant}}/{{sparsity}}/ticket.safetensors"
SIMILARITY = f"{RUN}/similarity.json"
RECORD = f"{RUN}/{{variant}}/{{sparsity}}/metrics.json"

WILDCARDS = {
    "backbone": r"[a-z0-9_]+",
    "task": r"[a-z0-9_]+",
    "kind": "task|backbone",
    "name": r"[a-z0-9_]+",
    "seed": r"\d+",
    "variant": r"[a-z0-9][a-z0-9_.-]*",
    "initial": "pretrained|random",
    "sparsity": r"0\.\d{4}",
    "round": r"\d+",
    "member": r"\d+",
    "step": r"\d+",
}
"""What a wildcard may be. Fixed forms: a sparsity has four decimals."""

NOTHING = r"(?!)"
"""A pattern that nothing matches: of a family without variants."""


def log(path: str) -> str:
    """Where the job that makes `path` logs to; mirrors the path below the study's folder."""
    folder = f"{STUDY}/logs"
    stem = path.removesuffix(".safetensors").removesuffix(".json")
    return f"{folder}/{stem.removeprefix(STUDY + '/')}.log"


# --- what jobs need ---------------------------------------------------------------------------------------------------


class Wildcards(Protocol):
    """The wildcards of a job, as Snakemake hands them out: all values are text."""

    study: str
    backbone: str
    task: str
    kind: registry.Kind
    name: str
    seed: str
    variant: str
    initial: str
    sparsity: str
    round: str
    member: str
    step: str


@dataclass(frozen=True)
class Dag:
    """The jobs of a study.

    Attributes:
        study: The study.
        shorten: What is done to every part of a command line that a study makes as long as it likes: texts, classes,
            lists of files. The default leaves it as it is.
    """

    study: Study
    shorten: Callable[[str], str] = str

    # --- variants ---------------------------------------------------------------------------------------------------

    @cached_property
    def _variants(self) -> dict[str, Variant]:
        """The study's, and chains of rounds that nothing but a pooled variant needs, as variants of their own."""
        found = dict(self.study.variants)
        for name, variant in self.study.variants.items():
            if self.study.method(name).module.FAMILY != "pooled":
                continue
            if any(self._equal_chain(name, backbone) is None for backbone in self.study.training):
                settings = _without_coefficients(variant.settings)
                special = {backbone: _without_coefficients(own) for backbone, own in variant.by_backbone.items()}
                chain = {"method": "lth", "settings": settings, "by_backbone": special}
                found[self._own_chain(name)] = variant.model_copy(update=chain)
        return found

    @staticmethod
    def _own_chain(variant: str) -> str:
        return f"{variant}{CHAIN}"

    def _equal_chain(self, variant: str, backbone: str) -> str | None:
        """An iterative variant of the study whose rounds are those that a pooled one needs."""
        for name, other in self.study.variants.items():
            method = self.study.method(name, backbone)
            if method.name == "lth" and other.initial == self.study.variants[variant].initial:
                wanted: Any = self.study.method(variant, backbone).settings
                if method.settings.model_dump() == wanted.model_dump(exclude={"coefficients"}):
                    return name
        return None

    def _chain_of(self, w: Wildcards) -> str:
        """The variant whose rounds a pooled one uses."""
        return self._equal_chain(w.variant, w.backbone) or self._own_chain(w.variant)

    @cached_property
    def _methods(self) -> dict[tuple[str, str], Method]:
        """By variant and backbone."""
        study = self.study.model_copy(update={"variants": self._variants})
        return {(name, b): study.method(name, b) for name in self._variants for b in study.training}

    def method_of(self, w: Wildcards) -> Method:
        """The method of a variant, with its settings."""
        return self._methods[w.variant, w.backbone]

    def _way(self, variant: str) -> str:
        """How the tickets of a variant are made: as its family says, or each in one job; soups also by choice."""
        method = self._methods[variant, next(iter(self.study.training))]  # on others it is made the same way
        family = str(method.module.FAMILY)
        chained = getattr(method.settings, "chained", True)
        if family == "souped" and chooses(method):
            return "chosen"
        return "one_job" if family == "single_pass" or not chained else family

    def variants(self, *ways: str) -> str:
        """A pattern of the variants whose tickets are made in one of these ways: a family, "one_job" or "chosen"."""
        names = [name for name in self._variants if self._way(name) in ways]
        return "|".join(name.replace(".", r"\.") for name in names) or NOTHING

    def _soup(self, w: Wildcards) -> soup.Settings:
        """The settings of a variant of the denoised family; the rules ask for no other."""
        settings = self.method_of(w).settings
        assert isinstance(settings, soup.Settings)
        return settings

    def _is_soup(self, w: Wildcards | None) -> bool:
        return w is not None and isinstance(self.method_of(w).settings, soup.Settings)

    def method(self, w: Wildcards) -> str:
        """The name of a variant's method, quoted for the shell: a method's file may have any name."""
        return shlex.quote(self.method_of(w).name)

    def chain(self, w: Wildcards) -> list[Decimal]:
        """The sparsities of the rounds that lead to `w.sparsity`, which is the last of them."""
        settings: Any = self.method_of(w).settings
        return sparsity.sparsities_to(Decimal(w.sparsity), settings.rate, settings.rate_of)

    def nominal(self, w: Wildcards, round_: int) -> Decimal:
        """The sparsity that the chain goes on with after a round."""
        settings: Any = self.method_of(w).settings
        return sparsity.nominal(round_, settings.rate, settings.rate_of)

    def _steps_per_epoch(self, w: Wildcards) -> int:
        return self.study.num_train(w.task) // self.study.training[w.backbone].batch_size

    def until(self, w: Wildcards) -> int:
        """The step at which round `w.round` prunes."""
        return soup.steps_until(self._soup(w), int(w.round), self._steps_per_epoch(w))

    def look_ahead_protocol(self, w: Wildcards) -> soup.LookAhead:
        """Return the settings that a look-ahead copy of a variant depends on."""
        return self._soup(w).look_ahead(self._steps_per_epoch(w))

    def backbones(self, embedded: bool) -> str:
        """A pattern of the backbones that are pre-trained here, or of those that are downloaded."""
        names = [name for name in self.study.training if (self.study.backbone(name).source is None) == embedded]
        return "|".join(names) or NOTHING

    # --- inputs -----------------------------------------------------------------------------------------------------

    def initial(self, w: Wildcards) -> str:
        """The state that a variant begins from."""
        return fill(INITIAL, w, initial=self._variants[w.variant].initial)

    def _within(self, w: Wildcards) -> dict[str, str]:
        """The mask that round `w.round` trains under: that of the round before."""
        index = int(w.round) - 1
        return {} if index < 0 else {"within": fill(ROUND_MASK, w, round=index, sparsity=self.nominal(w, index))}

    def segment(self, w: Wildcards) -> dict[str, str]:
        """A segment goes on from the state and mask of the round before."""
        first = int(w.round) == 0
        return {"start": self.initial(w) if first else fill(STATE, w, round=int(w.round) - 1), **self._within(w)}

    def look_ahead(self, w: Wildcards) -> dict[str, str]:
        """A look-ahead copy starts from the round's state, under the current mask."""
        return {"state": fill(STATE, w), **self._within(w)}

    def aggregation(self, w: Wildcards) -> dict[str, str | list[str]]:
        """A round's mask is made of its state, the current mask and the weak masks."""
        copies = range(self._soup(w).denoisers)
        return {**self.look_ahead(w), "weak": [fill(WEAK, w, member=index) for index in copies]}

    def previous_ticket(self, w: Wildcards) -> str:
        """A round of iterative pruning prunes the ticket of the round before; round 0 the dense one."""
        index = int(w.round) - 1
        if index < 0:
            return fill(DENSE, w, initial=self._variants[w.variant].initial)
        return fill(TICKET, w, sparsity=self.nominal(w, index))

    def rewind_point(self, w: Wildcards) -> str:
        """The state that every round of iterative pruning trains from."""
        step = iterative.rewind_step(self.method_of(w))
        return fill(REWIND_POINT, w, initial=self._variants[w.variant].initial, step=step) if step else self.initial(w)

    def pooling(self, w: Wildcards) -> dict[str, str | list[str]]:
        """A pooled ticket is made of that of its sparsity, the dense one, and those of the rounds before."""
        chain = self._chain_of(w)
        before = [fill(TICKET, w, variant=chain, sparsity=value) for value in self.chain(w)[:-1]]
        dense = fill(DENSE, w, initial=self._variants[w.variant].initial)
        return {"ticket": fill(TICKET, w, variant=chain), "candidates": [dense, *before]}

    def _of_member(self, variant: str, w: Wildcards) -> dict[str, Any] | None:
        """What a member of a variant's soups depends on; None if it has none."""
        settings = self._methods[variant, w.backbone].settings
        if not isinstance(settings, uniform_soup.Settings):
            return None
        return {"initial": self._variants[variant].initial, **settings.of_member(Decimal(w.sparsity))}

    def members(self, w: Wildcards) -> list[str]:
        """The members of a soup; they lie with the first variant whose members are the same, however many there are.

        The first member of a dense soup is the dense run.
        """
        count = souped.settings_of(self.method_of(w)).members
        own = self._of_member(w.variant, w)
        owner = next(name for name in self._variants if self._of_member(name, w) == own)
        paths = [fill(MEMBER, w, variant=owner, member=index) for index in range(count)]
        dense = fill(DENSE, w, initial=self._variants[w.variant].initial)
        return paths if Decimal(w.sparsity) else [dense, *paths[1:]]

    def subnetworks(self, w: Wildcards) -> list[str]:
        """The weak subnetworks that are merged."""
        count = instant.settings_of(self.method_of(w)).subnetworks
        return [fill(SUBNETWORK, w, member=index) for index in range(count)]

    def retraining(self, w: Wildcards) -> dict[str, str]:
        """A ticket is trained from a state under a mask."""
        family = self.method_of(w).module.FAMILY
        if family == "one_shot":
            return {"start": self.initial(w), "mask": fill(ONE_SHOT_MASK, w)}
        if family == "instant":
            return {"start": fill(MERGED, w), "mask": fill(MERGED_MASK, w)}
        last = len(self.chain(w)) - 1
        start = self.rewind_point(w) if family == "iterative" else fill(STATE, w, round=last)
        return {"start": start, "mask": fill(ROUND_MASK, w, round=last)}

    def ticket(self, w: Wildcards) -> str:
        """The ticket of a cell; dense variants share that of the dense run."""
        if self.method_of(w).module.FAMILY == "dense":
            return fill(DENSE, w, initial=self._variants[w.variant].initial)
        return fill(TICKET, w)

    @cached_property
    def _compared(self) -> dict[tuple[str, str, str], dict[str, list[str]]]:
        """By run (backbone, task, seed) and sparsity the variants whose masks are compared: where there are two."""
        found: dict[tuple[str, str, str], dict[str, list[str]]] = {}
        for group in self.study.groups():
            run = found.setdefault((group.backbone, group.task, str(group.seed)), {})
            for value in filter(None, group.sparsities):  # a dense one has no mask
                run.setdefault(str(value), []).append(group.variant)
        shared = {run: {s: names for s, names in of_run.items() if len(names) > 1} for run, of_run in found.items()}
        return {run: of_run for run, of_run in shared.items() if of_run}

    def _tickets_compared(self, w: Wildcards) -> dict[str, dict[str, str]]:
        """Paths of the tickets of a run whose masks are compared, by sparsity and variant."""
        return {
            value: {variant: fill(TICKET, w, variant=variant, sparsity=value) for variant in variants}
            for value, variants in self._compared[w.backbone, w.task, w.seed].items()
        }

    def compared(self, w: Wildcards) -> list[str]:
        """The tickets of a run whose masks are compared."""
        return [path for paths in self._tickets_compared(w).values() for path in paths.values()]

    def similarities(self) -> list[str]:
        """The comparisons of masks, one a run where there are two masks of one sparsity."""
        return [
            SIMILARITY.format(study=self.study.study, backbone=backbone, task=task, seed=seed)
            for backbone, task, seed in self._compared
        ]

    def records(self) -> list[str]:
        """The records of all cells, in the order of the study."""
        return [
            RECORD.format(study=self.study.study, **group.model_dump(exclude={"sparsities"}), sparsity=value)
            for group in self.study.groups()
            for value in group.sparsities
        ]

    # --- options of jobs --------------------------------------------------------------------------------------------

    def _options(self, **values: Any) -> str:
        """Options of a command line; settings as JSON."""
        texts = {
            key: value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
            for key, value in values.items()
        }
        return self.shorten(" ".join(f"--{key} {shlex.quote(text)}" for key, text in texts.items()))

    def repeated(self, option: str, paths: Iterable[str]) -> str:
        """An option that is given once for each of several files."""
        return self.shorten(" ".join(f"--{option} {path}" for path in paths))

    def wanted(self, w: Wildcards) -> str:
        """What a download is of."""
        return self._options(**{w.kind: self.study.defined(w.kind, w.name)})

    def backbone(self, w: Wildcards) -> str:
        """The backbone of a job: its name, or what the study file defines."""
        return self._options(backbone=self.study.defined("backbone", w.backbone))

    def task(self, w: Wildcards) -> str:
        """The task of a job: its name, or what the study file defines."""
        return self._options(task=self.study.defined("task", w.task))

    def run(self, w: Wildcards) -> str:
        """The options of every job that trains."""
        variant, sparsity_ = getattr(w, "variant", None), getattr(w, "sparsity", None)
        protocol = self.study.protocol(w.backbone, w.task, variant, sparsity_ and Decimal(sparsity_)).model_dump(
            mode="json"
        )
        limits = self.study.limits(w.task).model_dump(mode="json", exclude={"num_validation"})
        own = self._options(seed=w.seed, training=protocol, limits=limits)
        return f"{self.backbone(w)} {self.task(w)} {own} {self._place()}"

    def scoring(self, w: Wildcards) -> str:
        """The options of jobs that score."""
        limits = self.study.limits(w.task).model_dump(mode="json", include={"num_validation"})
        return f"{self.backbone(w)} {self.task(w)} {self._options(limits=limits)} {self._place()}"

    def _place(self) -> str:
        return self._options(threads=self.study.threads, device=self.study.device)

    def settings(self, w: Wildcards) -> str:
        """The method of a variant and its settings."""
        method = self.method_of(w)
        return self._options(method=method.source, settings=method.settings.model_dump(mode="json"))

    def look_ahead_settings(self, w: Wildcards) -> str:
        """Return the options of a look-ahead copy: its settings and what it contributes."""
        own = self.look_ahead_protocol(w).model_dump(mode="json")
        return f"{self._options(settings=own, contribution=self._soup(w).contribution)} {self.scope(w)}"

    def member_settings(self, w: Wildcards) -> str:
        """Those settings of a variant that a member of its soups depends on."""
        return self._options(settings=souped.settings_of(self.method_of(w)).of_member(Decimal(w.sparsity)))

    def subnetwork_settings(self, w: Wildcards) -> str:
        """Those settings of a variant that a weak subnetwork depends on."""
        return self._options(settings=instant.settings_of(self.method_of(w)).of_subnetwork())

    def within(self, w: Wildcards, input: Any) -> str:
        """The option that names the current mask; the first round has none."""
        return f"--within {input.within}" if "within" in input.keys() else ""  # noqa: SIM118 (not a dict)

    def rule(self, w: Wildcards) -> str:
        """The rule of superposition of a variant."""
        return f"{self._options(rule=self._soup(w).rule)} {self.scope(w)}"

    def scope(self, w: Wildcards) -> str:
        """Whether a variant ranks all layers together."""
        return self._options(scope=self.method_of(w).settings.scope)  # type: ignore[attr-defined]

    def cell(self, w: Wildcards) -> str:
        """What the record of a ticket begins with."""
        keys = {"study": w.study, "backbone": w.backbone, "task": w.task, "seed": int(w.seed), "variant": w.variant}
        return self._options(cell=keys)

    def comparison(self, w: Wildcards) -> str:
        """What masks of a run are compared, and what the record of it begins with."""
        keys = {"study": w.study, "backbone": w.backbone, "task": w.task, "seed": int(w.seed)}
        return self._options(tickets=self._tickets_compared(w), cell=keys)

    def cells(self) -> str:
        """The blocks of the grid with the sparsities of each variant, for `isp collect`; in the order of the study."""
        blocks = []
        for block in self.study.grid:
            of_block = self.study.model_copy(update={"grid": [block]}).groups()
            sparsities = {group.variant: [str(value) for value in group.sparsities] for group in of_block}
            keys = {"backbone": block.backbone, "tasks": block.tasks, "seeds": block.seeds}
            blocks.append({**keys, "variants": sparsities})
        return self._options(cells=blocks)

    def prepared(self) -> list[str]:
        """The prepared training examples of all backbones and tasks."""
        places = dict.fromkeys((group.backbone, group.task) for group in self.study.groups())
        return [PREPARED.format(backbone=backbone, task=task, split="train") for backbone, task in places]

    def reference(self) -> str:
        """The variant that `isp tables` and `isp page` compare the others with."""
        return self._options(reference=self.study.reference_variant())

    def described(self) -> str:
        """The study as its file says it, but for where data lie."""
        return self._options(study=self.study.model_dump(mode="json", exclude={"data_root"}, exclude_unset=True))

    def versions(self, stage: str, w: Wildcards | None = None) -> str:
        """The versions of the code that a stage's results depend on; a job reruns when they change."""
        modules: dict[str, ModuleType] = {stage: importlib.import_module(f"isp.stages.{stage}")}
        if stage in (
            "initialise",
            "finetune_dense",
            "train_segment",
            "weak_mask",
            "retrain",
            "pretrain",
            "find_ticket",
            "train_member",
            "train_subnetwork",
        ):
            modules["training"] = training
        if stage == "finetune_dense":
            modules["dense"] = registry.load("method", "dense")
        of_method = (
            *("prune_one_shot", "prune_iterative", "weak_mask", "aggregate", "find_ticket", "pool_tickets"),
            *("average_members", "choose_members", "train_subnetwork", "merge_subnetworks"),
        )
        if stage in of_method and w is not None:
            modules[self.method_of(w).name] = self.method_of(w).module
        if stage in ("train_segment", "weak_mask", "aggregate") or (stage == "find_ticket" and self._is_soup(w)):
            modules["isp"] = soup  # holds the mathematics of the whole family
        if stage in ("train_member", "train_subnetwork"):
            modules["isp"] = soup  # draws protocols and data
        if stage == "train_member":
            modules["uniform_soup"] = uniform_soup  # holds what all soups' members are
        found = {name: module.VERSION for name, module in modules.items()}
        if stage in of_method and w is not None and self.method_of(w).source.endswith(".py"):
            found[self.method_of(w).name] = self.method_of(w).module.__name__  # ends in the checksum of the file
        if stage in ("prepare", "pretrain", "convert", "initialise") and w is not None:
            found[f"backbone {w.backbone}"] = self.study.backbone(w.backbone).version
        if stage in ("split", "prepare", "initialise", "evaluate") and w is not None:
            found[f"task {w.task}"] = self.study.task(w.task).version
        if stage == "pretrain" and w is not None:
            found["protocol"] = registry.load("backbone", w.backbone).PRETRAINING.model_dump(mode="json")
        return json.dumps(found)


def _without_coefficients(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "coefficients"}


def fill(pattern: str, w: Wildcards, **changed: Any) -> str:
    """A path with the wildcards of a job, some of them changed."""
    values: Mapping[str, Any] = {key: getattr(w, key) for key in _keys(pattern) if key not in changed}
    return pattern.format(**values, **{key: value for key, value in changed.items() if key in _keys(pattern)})


@cache
def _keys(pattern: str) -> tuple[str, ...]:
    return tuple(part.split("}")[0] for part in pattern.split("{")[1:])
