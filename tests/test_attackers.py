"""Which attack an erasing run simulates: one optimiser on some parameters, or a mixture drawn afresh each step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from conftest import break_at_the_fourth_step, read_lines, same_weights
from metaunlearn import doctor
from metaunlearn.checkpoint import step_generator
from metaunlearn.config import Attacker, EraseSettings
from metaunlearn.data.latents import LatentSet
from metaunlearn.erasing import erase
from metaunlearn.erasure.registry import configure
from metaunlearn.errors import RunError, UserError
from metaunlearn.meta.batches import OuterDraw, RetainBatch, draw_attacker
from metaunlearn.meta.hypergradient import MetaProblem
from metaunlearn.meta.objective import meta_problem, simulated_finetuning
from metaunlearn.meta.optimizers import SGD, Adam, Momentum
from metaunlearn.meta.store import host_memory, on_device
from metaunlearn.meta.train import PROBES
from metaunlearn.models import load
from metaunlearn.parameters import subset
from metaunlearn.recipe import read_recipe
from metaunlearn.settings import resolve
from toy_denoiser import counted_gradients

FAST = (
    "steps=6", "forget_images=4", "retain_images=4", "bank_trajectories=3", "bank_steps=4", "batch_size=4",
    "checkpoint_every=2", "meta_gradient=gradient-difference",
)  # fmt: skip
MIXTURE = (
    'attackers=[{optimizer = "sgd", learning_rate = 1e-2, steps = 1}, '
    '{optimizer = "adamw", learning_rate = 1e-4, steps = 3}, {optimizer = "momentum", learning_rate = 1e-3, steps = 2}]'
)
ATTACKERS = (
    Attacker(optimizer="sgd", learning_rate=1e-2, steps=1),
    Attacker(optimizer="adamw", learning_rate=1e-4, steps=3),
    Attacker(optimizer="momentum", learning_rate=1e-3, steps=2),
)


def run(model: Path, out: Path, *more: str, resume: bool = False) -> None:
    erase(model, ["zebra"], out=out, overrides=[*FAST, *more], resume=resume)


def settings(*overrides: str) -> EraseSettings:
    return resolve(EraseSettings, read_recipe("small-unbounded").erase, overrides)


def logged(out: Path) -> list[dict]:
    return read_lines(out / "log.jsonl")


@pytest.fixture(scope="module")
def alone(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run against one attacker of three AdamW steps."""
    out = tmp_path_factory.mktemp("alone") / "run"
    run(tiny_model, out, "inner_optimizer=adamw", "inner_learning_rate=1e-4", "inner_steps=3")
    return out


@pytest.fixture(scope="module")
def mixed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run against the mixture."""
    out = tmp_path_factory.mktemp("mixed") / "run"
    run(tiny_model, out, MIXTURE)
    return out


def test_a_mixture_reads_alike_from_a_recipe_and_from_set() -> None:
    rows = [attacker.model_dump() for attacker in ATTACKERS]
    assert resolve(EraseSettings, read_recipe("small-unbounded").erase | {"attackers": rows}) == settings(MIXTURE)
    assert settings(MIXTURE).simulated == ATTACKERS
    assert settings(MIXTURE, "attackers=[]") == settings()


@pytest.mark.parametrize("said", ["inner_optimizer=sgd", "inner_learning_rate=1e-3", "inner_steps=2"])
def test_one_attacker_beside_a_mixture_is_refused(said: str) -> None:
    """Whoever brings the mixture; the recipe's own inner keys give way to it in silence."""
    recipe = read_recipe("small-unbounded")
    key = said.partition("=")[0]
    with pytest.raises(UserError, match=rf"{key} .*would be ignored.*--set attackers=\[\]"):
        configure("esd-u-1", recipe, [MIXTURE, said])
    mixed = recipe.model_copy(update={"erase": recipe.erase | {"attackers": [ATTACKERS[0].model_dump()]}})
    with pytest.raises(UserError, match="mixture of 1"):
        configure("esd-u-1", mixed, [said])
    assert configure("esd-u-1", recipe, [MIXTURE]).settings.simulated == ATTACKERS
    alone = configure("esd-u-1", mixed, [said, "attackers=[]"]).settings
    assert alone == configure("esd-u-1", recipe, [said]).settings


def test_without_a_mixture_the_inner_keys_are_the_attacker() -> None:
    found = settings("inner_optimizer=momentum", "inner_learning_rate=1e-3", "inner_steps=2").simulated
    assert found == ATTACKERS[2:]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("inner_optimizer=adamx", "inner_optimizer = 'adamx'"),
        ("inner_momentum=1", "inner_momentum"),
        ("inner_weight_decay=-1", "inner_weight_decay"),
        ("inner_eps_root=0", "inner_eps_root"),
        ("attackers=[{", "attackers"),
        ("attackers=adam", "attackers"),
        ('attackers=[{optimizer = "adam", steps = 1}]', "attackers.0.learning_rate"),
        ('attackers=[{optimizer = "adam", learning_rate = 1e-5, steps = 0}]', "attackers.0.steps"),
    ],
)
def test_wrong_settings_are_refused(override: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        settings(override)


def test_a_subset_that_does_not_exist_is_refused_before_any_work(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'y' \(inner_subset, --set inner_subset="):
        run(tiny_model, tmp_path / "out", "inner_subset=y")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="inner_subset"):
        doctor.estimate(tiny_model, overrides=["inner_subset=y"], speed=1e9)


def test_settings_reach_the_inner_loop(tiny_model: Path) -> None:
    model = load(tiny_model)
    data = LatentSet.encode(model, torch.zeros(1, 3, 32, 32), ["a zebra"])
    batch = data.draw(1, torch.Generator().manual_seed(0))
    retain = RetainBatch(batch, 0)
    batches = [OuterDraw(forget=None, retain=retain, meta_retain=retain, direct=retain, inner=(batch,), outer=batch)]
    keys = settings(
        "inner_store=host", "inner_subset=x", "inner_momentum=0.5", "inner_weight_decay=0.3", "inner_eps_root=1e-6"
    )
    inner = [meta_problem(model, batches, attacker, keys, theta={}).inner for attacker in ATTACKERS]
    assert [loop.learning_rate for loop in inner] == [1e-2, 1e-4, 1e-3]
    assert [loop.optimizer for loop in inner] == [
        SGD(),
        Adam(weight_decay=0.3, eps_root=1e-6),
        Momentum(momentum=0.5),
    ]
    assert all(loop.adapted == subset(model.parameters(), "x") for loop in inner)
    assert all(loop.store is host_memory for loop in inner)
    assert meta_problem(model, batches, ATTACKERS[0], settings(), theta={}).inner.store is on_device


def test_the_attacker_may_tune_what_the_method_trains(tiny_model: Path) -> None:
    """Whose subset may have no name: esd-2025 trains weights and biases of some layers."""
    model = load(str(tiny_model))
    trained = configure("esd-2025", read_recipe("small")).method.trained(model)
    names = model.parameter_names
    assert simulated_finetuning(names, ATTACKERS[0], settings("inner_subset=method"), trained).adapted == trained
    assert simulated_finetuning(names, ATTACKERS[0], settings("inner_subset=f"), trained).adapted > trained


def test_an_attacker_is_drawn_by_the_generator_alone() -> None:
    """Each of three comes up in 30 draws (all but 3 (2/3)^30 = 2e-5 of the seeds); an only one costs no randomness."""
    drawn = [draw_attacker(ATTACKERS, step_generator(0, step, "outer")) for step in range(30)]
    assert drawn == [draw_attacker(ATTACKERS, step_generator(0, step, "outer")) for step in range(30)]
    assert set(drawn) == set(ATTACKERS)
    generator = step_generator(0, 0, "outer")
    before = generator.get_state()
    assert draw_attacker(ATTACKERS[:1], generator) == ATTACKERS[0]
    assert torch.equal(generator.get_state(), before)


def test_the_log_names_the_attacker_of_each_step(mixed: Path, alone: Path) -> None:
    records = logged(mixed)
    expected = [draw_attacker(ATTACKERS, step_generator(0, step, "outer")) for step in range(6)]
    assert [record["attacker"] for record in records] == [attacker.model_dump() for attacker in expected]
    assert [len(record["loss_finetuning"]) for record in records] == [attacker.steps for attacker in expected]
    assert len(set(expected)) > 1
    assert not any("attacker" in record for record in logged(alone))


def test_a_mixture_of_one_is_the_attacker_alone(tiny_model: Path, alone: Path, tmp_path: Path) -> None:
    run(tiny_model, tmp_path / "one", 'attackers=[{optimizer = "adamw", learning_rate = 1e-4, steps = 3}]')
    assert same_weights(tmp_path / "one", alone)


def test_a_mixture_resumes_to_the_same_weights(
    tiny_model: Path, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off at step 4, after the state of step 2; every attacker is drawn again as it was."""
    break_at_the_fourth_step(monkeypatch)
    with pytest.raises(RunError, match="step 4"):
        run(tiny_model, tmp_path / "out", MIXTURE)
    monkeypatch.undo()
    run(tiny_model, tmp_path / "out", MIXTURE, resume=True)
    assert same_weights(tmp_path / "out", mixed)
    assert logged(tmp_path / "out") == logged(mixed)


def test_auto_probes_every_attacker_of_a_mixture(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[MetaProblem] = []

    def notes(theta: object, probes: Sequence[MetaProblem], tried: Sequence[object]) -> list[float]:
        probed.extend(probes)
        return [0.0] * len(tried)

    monkeypatch.setattr("metaunlearn.meta.modes._errors", notes)
    run(tiny_model, tmp_path / "out", MIXTURE, "steps=1", "meta_gradient=auto")
    assert [(probe.inner.learning_rate, len(probe.inner_losses)) for probe in probed] == [
        (attacker.learning_rate, attacker.steps) for attacker in ATTACKERS for _ in range(PROBES)
    ]


def test_doctor_counts_the_mean_and_the_most() -> None:
    """M = 1, 3, 2: 2 + M + 2 + 2 M gradients are 10 in the mean; AdamW needs 1 + (2 + 3) + 11 copies, and one more as
    the step is diagnosed; momentum at M = 2 1 + 4 + 3 with theta and 2 more; and to first order, where no path is kept,
    1 + 3 + 2. One who goes on adds 2."""
    once = "inner_horizon=none"
    found = settings(MIXTURE, "meta_gradient=gradient-difference", once)
    assert counted_gradients(found, meta=True) == 10
    assert doctor.parameter_copies(found, meta=True) == 18
    assert doctor.parameter_copies(settings(MIXTURE, "meta_gradient=gradient-difference"), meta=True) == 20
    momentum = ("inner_optimizer=momentum", "inner_steps=2", once)
    assert doctor.parameter_copies(settings(*momentum, "meta_gradient=auto"), meta=True) == 10
    assert doctor.parameter_copies(settings(*momentum, "meta_gradient=first-order"), meta=True) == 6
