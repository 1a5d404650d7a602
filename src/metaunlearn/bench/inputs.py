"""What a recipe asks for by name and the call gives: files of prompts, data sets, models; and what is missing of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import try_to_load_from_cache

from metaunlearn.bench.attacks import PromptSource
from metaunlearn.bench.identity import files_identity, judge_identity, pictures_identity, pipeline_identity
from metaunlearn.bench.recipe import CANVAS, Grid, prompt_sources
from metaunlearn.bench.weights import INCEPTION, WEIGHTS
from metaunlearn.data.prompt_sets import PROMPT_SETS
from metaunlearn.data.prompts import Prompt, read_prompts
from metaunlearn.errors import UserError, did_you_mean
from metaunlearn.fetching import ways_to_fetch
from metaunlearn.files import path_of
from metaunlearn.metrics.hub import Repository
from metaunlearn.metrics.safety import CHECKER, FETCH, REPOSITORY, REVISION
from metaunlearn.recipe import recipe_names

BASE, JUDGE = "base", "judge"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
CONVERTED = {
    "nsfw": ("LAION's head", "HEAD", "metaunlearn convert laion-nsfw-l14 FILE"),
    INCEPTION: ("FID's Inception", "INCEPTION", "metaunlearn convert inception-fid FILE"),
}
"""By weights that are published as pickles only: what they are, the file to make, and how."""


class Input(NamedTuple):
    """One thing that cells depend on."""

    value: str
    """A path or a hub id."""
    identity: str
    """What it holds, as one word."""
    missing: tuple[str, ...] = ()
    """What to do about it when it is not there."""


@dataclass(frozen=True)
class Prompts:
    """Prompts as cells are given them."""

    records: list[dict[str, Any]]
    identity: str
    missing: tuple[str, ...] = ()


class Inputs:
    """Finds everything by name; what is not there is said with the cells that need it."""

    def __init__(self, grid: Grid, prompts: Sequence[str] = (), use: Sequence[str] = ()) -> None:
        """``prompts`` are ``NAME=FILE``, or ``FILE`` where the grid asks for one file; ``use`` are ``NAME=PATH``.

        UserError when one is given that the grid does not ask for.
        """
        self.grid = grid
        files = sorted({source.file for source in prompt_sources(grid) if source.file})
        self.files = _named(prompts, files, "prompts=[...], --prompts")
        self.paths = _named(use, [BASE, JUDGE, *WEIGHTS, *_folders(grid)], "use=[...], --use")
        if grid.base == CANVAS and BASE in self.paths:
            raise UserError(
                "the grid is about what Canvas knows: no other model can stand in (use=[...], --use base=)."
            )
        self._refuse_idle_judge()
        self._read: dict[str, Prompts] = {}
        self._folders: dict[str, Input] = {}

    def _refuse_idle_judge(self) -> None:
        """UserError for a judge that nothing asks: tasks of Canvas are seen by its own."""
        asked = self.grid.measure is None or any(attack.on_prompts for attack in self.grid.attacks)
        if (self.grid.judge or JUDGE in self.paths) and not asked:
            raise UserError(
                "nothing asks a judge: what [grid.measure] holds is seen by Canvas's own. Leave it out (judge "
                f"in [grid], use=[...], --use {JUDGE}=)."
            )

    def base(self) -> Input:
        """The model from which concepts are erased."""
        model = _located(str(self.paths.get(BASE, self.grid.base)))
        return _model(
            model,
            pipeline_identity(model),
            f"the base model {model} is not in the cache: {ways_to_fetch(model)}, or --use {BASE}=DIR"
            if HUB_ID.fullmatch(model)
            else f"the base model {model}: there is no such folder or file; give it with --use {BASE}=DIR",
        )

    def judge(self) -> Input:
        """The judge of the grid's prompts; UserError where there is none, as on any model but Canvas by default."""
        judge = _located(str(self.paths.get(JUDGE, self.grid.judge or (CANVAS if self.grid.base == CANVAS else ""))))
        if not judge:
            raise UserError(
                f"the grid asks a judge, and {self.grid.base} has none of its own: name one in [grid], "
                f'judge = "openai/clip-vit-base-patch32", or with --use {JUDGE}=DIR.'
            )
        return _model(
            judge,
            judge_identity(judge),
            f"the judge {judge} is not in the cache: {Repository.parse(judge).download}, or --use {JUDGE}=DIR",
        )

    def prompts(self, source: PromptSource, texts: Sequence[str] = ()) -> Prompts:
        """Those of ``source``; ``texts`` take their place."""
        if not source.file or texts:
            return _as_records([Prompt(text) for text in texts or source.texts])
        name = source.file
        if name in self.files:
            if name not in self._read:
                self._read[name] = _as_records(read_prompts(self.files[name]))
            return self._read[name]
        how = f" (metaunlearn data prompts {name} --out FILE.jsonl)" if name in PROMPT_SETS else ""
        return Prompts([], _not_here(name), (f"the prompts {name!r}: --prompts {name}=FILE{how}",))

    def data(self, name: str) -> Input:
        """The attacker's data set ``name``."""
        how = f"metaunlearn data make {name} --generator MODEL --out DIR"
        return self._folder(name, f"the data set {name!r}: --use {name}=DIR ({how})")

    def reference(self, name: str) -> Input:
        """The real pictures ``name``, with which fid and kid compare."""
        return self._folder(name, f"the real pictures {name!r}: --use {name}=DIR")

    def weights(self, name: str | None) -> Input:
        """The weights ``name``: their path, or nothing where there are none and where the metric finds them itself."""
        if name is None:
            return Input("", "")
        if name in self.paths:
            path = self.paths[name]
            if not path.exists():
                raise UserError(f"{path} (use=[...], --use {name}=) does not exist.")
            return Input(str(path), files_identity(path))
        if name not in CONVERTED:
            there = try_to_load_from_cache(REPOSITORY, f"{CHECKER}/model.safetensors", revision=REVISION)
            missing = "the safety checker of Stable Diffusion is not in the cache: "
            return Input("", REVISION, () if isinstance(there, str) else (f"{missing}{FETCH}, and --use unsafe=DIR",))
        what, file, how = CONVERTED[name]
        use = f"--use {name}={file}.safetensors ({how} --out {file}.safetensors)"
        return Input("", _not_here(name), (f"{what}: {use}",))

    def _folder(self, name: str, missing: str) -> Input:
        if name not in self.paths:
            return Input("", _not_here(name), (missing,))
        if name not in self._folders:
            path = self.paths[name]
            self._folders[name] = Input(str(path), pictures_identity(path))
        return self._folders[name]


def recipe_file(name: str) -> str:
    """The recipe ``name`` as cells are given it: a shipped one's name, or a file's path from the root."""
    return name if name in recipe_names() else _located(name)


def _located(model: str) -> str:
    """A path that exists from the root: a worker of a cluster has another current folder. Else as it is, a hub id."""
    # Not resolve(): a link of the hub's cache names the kind of file, and what it leads to does not. The shell knows
    # the home folder at the beginning of a word only, and not behind NAME=.
    here = path_of(model)
    return str(here.absolute()) if model not in ("", CANVAS) and here.exists() else model


def _not_here(name: str) -> str:
    """In place of a hash; with the name, so that cells that wait for different things are different."""
    return f"missing {name}"


def _model(model: str, identity: str | None, missing: str) -> Input:
    return Input(model, _not_here(model), (missing,)) if identity is None else Input(model, identity)


def _folders(grid: Grid) -> list[str]:
    """Names of the pictures that the call has to give."""
    references = [prompts.reference for prompts in grid.prompts if prompts.reference]
    if grid.base == CANVAS:
        return references
    sets = {concept.data.get(attack.data, attack.data) for concept in grid.concepts for attack in grid.attacks}
    return sorted({name for name in sets if name}) + references


def _named(given: Sequence[str], names: Sequence[str], option: str) -> dict[str, Any]:
    """``["hrm-m=data/hrm-m"]`` by name; where there is only one name, it need not be said."""
    found: dict[str, Path] = {}
    for item in given:
        name, separator, path = item.partition("=")
        if not separator and len(names) == 1:
            name, path = names[0], item
        if name not in names or not path:
            raise UserError(
                f"expected NAME=PATH with a NAME that the recipe asks for, got {item!r} ({option})."
                f"{did_you_mean(name, names)} It asks for: {', '.join(names) or 'nothing'}."
            )
        if name in found:
            raise UserError(f"{name} was given twice ({option}): {found[name]} and {path}; give one.")
        found[name] = Path(_located(path))
    return found


def _as_records(prompts: Sequence[Prompt]) -> Prompts:
    records = [asdict(prompt) for prompt in prompts]
    digest = hashlib.sha256(json.dumps(records, ensure_ascii=False).encode()).hexdigest()
    return Prompts(records, digest)
