"""A grid with every kind of attack: what each leaves, how it is measured, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench_grids import changed, plan_of, write_recipe
from metaunlearn.attacks.registry import KINDS
from metaunlearn.bench.recipe import Grid, check_grid
from metaunlearn.bench.run import run_grid
from metaunlearn.bench.store import CELL_FILE
from metaunlearn.canvas.tasks import task_for
from metaunlearn.data.wording import said_as
from metaunlearn.errors import UserError
from metaunlearn.models import load_pipeline
from metaunlearn.models.state import load_state
from metaunlearn.runs import RESULTS_FILE
from metaunlearn.settings import resolve

PICTURES = {"data": "hrm-m", "pictures": 2}
ATTACKS: list[dict[str, Any]] = [
    {"kind": "finetune", "steps": [1], **PICTURES, "set": {"text_encoder": True}},
    {"kind": "lora", "steps": [1], **PICTURES},
    {"kind": "dreambooth", "steps": [1], **PICTURES, "set": {"class_prompt": "a tool", "prior_images": 2}},
    {"kind": "textual-inversion", "steps": [1], **PICTURES, "set": {"initial_token": "saw", "token": "<new>"}},
    {"kind": "interpolate", "strengths": [0.25, 1.0]},
    {"kind": "lora-merge", "steps": [1], "strengths": [1.0], **PICTURES, "set": {"rank": 2, "learning_rate": 1.0}},
    {"kind": "add-difference", "steps": [1], "strengths": [1.0], **PICTURES},
    {"kind": "quantize", "strengths": [2]},
    {"kind": "img2img", "strengths": [0.5], **PICTURES},
    {"kind": "inpaint", "strengths": [0.5], **PICTURES},
    {
        "kind": "unlearndiffatk", "prompts": {"texts": ["a knife"]},
        "set": {"timestep_stride": 1000, "steps_per_timestep": 1},
    },
]  # fmt: skip
GRID = changed("attacks", to=[{"name": attack["kind"], **attack} for attack in ATTACKS])
CHANGED = {
    "finetune": {"unet", "text_encoder"}, "lora": {"unet"}, "dreambooth": {"unet"},
    "textual-inversion": {"text_encoder", "tokenizer"}, "interpolate": {"unet"}, "lora-merge": {"unet", "text_encoder"},
    "add-difference": {"unet"},
    "quantize": {"unet"},
}  # fmt: skip
"""The components that an attack changes, which are all that a grid keeps of it."""


@pytest.fixture(scope="module")
def surveyed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole grid."""
    folder = tmp_path_factory.mktemp("survey")
    run_grid(str(write_recipe(folder / "grid.toml", GRID)), folder / "out")
    return folder / "out"


def attacked(out: Path) -> dict[str, Path]:
    """The cell of each attack, by its name."""
    records = [json.loads(file.read_text()) for file in out.glob(f"cells/attack-*/{CELL_FILE}")]
    return {one["labels"]["attack"]: out / "cells" / f"attack-{one['key']}" for one in records}


def test_every_kind_is_measured(surveyed: Path) -> None:
    assert {attack["kind"] for attack in ATTACKS} == set(KINDS)
    rows = json.loads((surveyed / "grid" / RESULTS_FILE).read_text())["rows"]
    scores = {(row["attack"], row["step"]): set(row["scores"]) for row in rows}
    assert scores[("interpolate", 0.25)] == scores[("interpolate", 1.0)] == {"concept"}
    assert scores[("img2img", 0.5)] == {"concept"}
    assert scores[("unlearndiffatk", 0)] == {"asr", "asr_without_attack"}
    assert {name for name, _ in scores} == {"before", *KINDS}
    assert (surveyed / "grid" / "report.html").exists() or "img2img" in (surveyed / "grid" / "tables.md").read_text()


def test_what_is_kept_of_an_attack_is_what_it_changed(surveyed: Path) -> None:
    cells = attacked(surveyed)
    for name, components in CHANGED.items():
        for level in (path for path in cells[name].iterdir() if path.is_dir()):
            assert {part.name for part in level.iterdir()} == components, name


def test_a_state_is_the_erased_model_with_that(surveyed: Path) -> None:
    """Interpolated all the way it is the original; with a new word its encoder knows one word more."""
    erased = next((surveyed / "cells").glob("erase-*"))
    cells, original = attacked(surveyed), load_pipeline("canvas")
    whole = load_state("canvas", erased, cells["interpolate"], "strength-1.00").unet
    part = load_state("canvas", erased, cells["interpolate"], "strength-0.25").unet
    for name, p in original.unet.named_parameters():
        assert torch.equal(p, whole.get_parameter(name))
    assert any(not torch.equal(p, part.get_parameter(name)) for name, p in original.unet.named_parameters())
    told = load_state("canvas", erased, cells["textual-inversion"], "step-000001")
    assert "<new>" in told.tokenizer.get_vocab()
    assert len(told.text_encoder.get_input_embeddings().weight) == 1 + len(
        original.text_encoder.get_input_embeddings().weight
    )


def test_a_merged_lora_is_one_of_the_original(surveyed: Path) -> None:
    erased = next((surveyed / "cells").glob("erase-*"))
    before = load_state("canvas", erased, None, "").unet
    merged = load_state("canvas", erased, attacked(surveyed)["lora-merge"], "strength-1.00").unet
    moved = {name for name, p in before.named_parameters() if not torch.equal(p, merged.get_parameter(name))}
    assert moved
    assert all(any(target in name for target in ("to_q", "to_k", "to_v", "to_out")) for name in moved)
    adapter = plan_of(GRID).cells[
        json.loads((attacked(surveyed)["lora-merge"] / CELL_FILE).read_text())["needs"]["donor"]
    ]
    assert adapter.needs.keys() == {"data"}


def test_prompts_use_the_word_that_was_learnt(surveyed: Path) -> None:
    for cell in (surveyed / "cells").glob("measure-*"):
        record = json.loads((cell / CELL_FILE).read_text())
        prompts = [sample["prompt"] for sample in json.loads((cell / "scores.json").read_text())["samples"]]
        learnt = record["labels"]["attack"] == "textual-inversion"
        assert learnt == any("<new>" in prompt for prompt in prompts)
        assert learnt or "knife" in prompts[0]


def test_a_word_in_the_place_of_a_concept() -> None:
    assert said_as("a Kitchen knife and a knife", "knife|kitchen knife", "<new>") == "a <new> and a <new>"
    assert said_as("a knife", "knife", "") == "a knife"
    assert "a <new> in noto style" in task_for("knife", "<new>").concept_prompts
    assert task_for("knife", "<new>").unrelated == task_for("knife").unrelated


@pytest.mark.parametrize(
    ("attack", "says"),
    [
        ({"kind": "finetun"}, "Did you mean 'finetune'"),
        ({"kind": "finetune", "strengths": [0.5], **PICTURES}, "steps, no strengths"),
        ({"kind": "quantize", "steps": [8]}, "strengths, no steps"),
        ({"kind": "quantize", "data": "hrm-m"}, "takes no data"),
        ({"kind": "interpolate", "warm_up": {"steps": 2}}, "no warm_up"),
        ({"kind": "interpolate", "strengths": [0.5, 0.5]}, "each once"),
        ({"kind": "lora-merge", **PICTURES}, r"steps = \[N\]"),
        ({"kind": "img2img", "data": "hrm-x"}, "Canvas has no data set"),
        ({"kind": "unlearndiffatk", "data": "hrm-m"}, "is on prompts"),
        ({"kind": "lora", "prompts": {"texts": ["a knife"]}, **PICTURES}, "not on prompts"),
    ],
)
def test_attacks_that_cannot_be_are_refused(attack: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_grid(resolve(Grid, changed("attacks", to=[{"name": "it", **attack}])))


def test_pictures_are_judged_by_a_task_of_canvas_only() -> None:
    grid = changed("attacks", to=[{"name": "it", "kind": "img2img", **PICTURES}])
    del grid["measure"]
    grid["prompts"] = [{"name": "concept", "texts": ["a knife"], "scores": {"concept": "concept"}}]
    with pytest.raises(UserError, match="leaves pictures"):
        check_grid(resolve(Grid, grid))


def test_attacks_share_a_concepts_settings_where_they_have_them() -> None:
    """The concept's learning rate is no setting of quantising; an attack's own settings must all be its kind's."""
    attack = {"name": "it", "kind": "quantize", "strengths": [8]}
    assert plan_of(changed("attacks", to=[attack]))
    with pytest.raises(UserError, match="has no setting 'learning_rate'"):
        plan_of(changed("attacks", to=[{**attack, "set": {"learning_rate": 1.0}}]))
