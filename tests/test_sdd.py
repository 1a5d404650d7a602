"""SDD: whose prediction is the target, that it is held constant, the teacher, its paths, and whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import TINY_SIZE
from forked_runs import run_and_kill
from metaunlearn.checkpoint import step_generator
from metaunlearn.config import EraseSettings
from metaunlearn.data.concepts import prompts_for
from metaunlearn.data.latents import LatentSet
from metaunlearn.erasing import erase
from metaunlearn.erasure.interface import ErasureTask, Moving
from metaunlearn.erasure.sdd import Sdd, SddForgetLoss, joined_prompts, moved_average
from metaunlearn.erasure.trajectories import TrajectoryBank, sample_trajectories
from metaunlearn.errors import UserError
from metaunlearn.meta.batches import OuterDraw, RetainBatch
from metaunlearn.meta.objective import losses_at_theta
from metaunlearn.meta.train import Algorithm1
from metaunlearn.models import TextToImageModel, load
from metaunlearn.parameters import Params
from metaunlearn.recipe import read_recipe
from metaunlearn.settings import resolve

FAST = (
    "steps=6", "forget_images=4", "retain_images=4", "bank_trajectories=2", "bank_steps=4", "batch_size=4",
    "checkpoint_every=2", "meta_gradient=first-order", "bank_refresh=3", "ema_decay=0.5",
)  # fmt: skip
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> TextToImageModel:
    return load(tiny_model)


@pytest.fixture(scope="module")
def task(model: TextToImageModel) -> ErasureTask:
    overrides = ("bank_trajectories=5", "bank_steps=4", "steps=100")
    return ErasureTask(
        model=model,
        prompts=prompts_for(model.pipeline, ["zebra|yak", "gnu"]),
        settings=resolve(EraseSettings, read_recipe("small").erase, overrides),
        seed=0,
    )


def new_loss(task: ErasureTask, **options: object) -> SddForgetLoss:
    return Sdd(**options).begin(task)  # type: ignore[arg-type]


def moved(theta: Params) -> Params:
    """Other parameters than the teacher's."""
    return {name: p + 0.05 for name, p in theta.items()}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def test_average_by_hand() -> None:
    """0.75 x 1 + 0.25 x 3 = 1.5; equal values stay what they are, bit for bit, at any decay."""
    one = {"a": torch.tensor(1.0)}
    assert moved_average(one, {"a": torch.tensor(3.0), "b": torch.tensor(0.0)}, 0.75) == {"a": torch.tensor(1.5)}
    p = {"a": torch.randn(1000, generator=generator())}
    assert torch.equal(moved_average(p, p, 0.999)["a"], p["a"])


def test_prompts_are_joined(task: ErasureTask) -> None:
    assert joined_prompts(task.prompts)[:2] == ["zebra, yak, gnu", "a photo of zebra, a photo of yak, a photo of gnu"]


def test_concepts_come_in_turn_over_batches_and_steps(model: TextToImageModel, task: ErasureTask) -> None:
    """Steps of 4 rows: step 0 asks for prompts 0-3, step 1 for 4-7, of 3 concepts in 5 templates."""
    loss = new_loss(task)
    encoded = model.encode_prompts(task.prompts.forget)
    for step, expected in ((0, [0, 1, 2, 3]), (1, [4, 5, 6, 7]), (4, [1, 2, 3, 4])):
        batch = loss.batch(model.parameters(), step, 4, generator())
        assert torch.equal(batch.cond.tokens, encoded[expected].tokens)


def test_target_is_the_students_own_prediction_for_nothing(model: TextToImageModel, task: ErasureTask) -> None:
    loss, student = new_loss(task), moved(model.parameters())
    batch = loss.batch(student, 0, 4, generator())
    empty = model.unconditional().expand(4)
    with torch.no_grad():
        assert torch.equal(batch.target, model.predict(student, batch.x_t, batch.t, empty))
        assert not torch.allclose(batch.target, model.predict(model.parameters(), batch.x_t, batch.t, empty))


def test_no_gradient_flows_through_the_target(model: TextToImageModel, task: ErasureTask) -> None:
    """grad L_forget = grad ||eps(c) - a constant||^2, which is not the gradient that also moves eps(∅)."""
    theta = moved(model.parameters())
    leaf_names = [name for name in theta if ".attn2." in name]
    theta |= {name: theta[name].requires_grad_() for name in leaf_names}
    leaves = [theta[name] for name in leaf_names]
    batch = new_loss(task).batch(theta, 0, 4, generator())
    assert not batch.target.requires_grad
    kept = LatentSet.encode(model, torch.zeros(2, 3, TINY_SIZE, TINY_SIZE), ["a key", "a key"]).draw(2, generator())
    retain = RetainBatch(kept, 1)
    draws = OuterDraw(forget=batch, retain=retain, meta_retain=retain, direct=retain, inner=(), outer=kept)
    found = torch.autograd.grad(losses_at_theta(model, theta, draws, direct=False).forget, leaves)

    def by_hand(*, constant: bool) -> tuple[torch.Tensor, ...]:
        target = model.predict(theta, batch.x_t, batch.t, model.unconditional().expand(4))
        answer = model.predict(theta, batch.x_t, batch.t, batch.cond)
        error = answer - (target.detach() if constant else target)
        return torch.autograd.grad(error.square().mean(), leaves)

    for one, two in zip(found, by_hand(constant=True), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-7)
    difference = sum((a - b).norm() for a, b in zip(found, by_hand(constant=False), strict=True))
    assert difference > 0.01 * sum(a.norm() for a in found)


def test_latents_lie_where_their_timestep_says(model: TextToImageModel, task: ErasureTask) -> None:
    """The noisiest latent of each path is pure noise, and no finished latent comes with a noisy timestep."""
    loss = new_loss(task)
    top = loss.latents.rows().x_t[loss.latents.rows().t >= 750]
    assert len(top) == 5
    assert torch.equal(top, torch.randn((5, *model.latent_shape), generator=step_generator(0, 0, "bank")))


def test_teacher_follows_and_samples_anew_when_it_is_time(model: TextToImageModel, task: ErasureTask) -> None:
    loss, student = new_loss(task, bank_refresh=2, ema_decay=0.9), moved(model.parameters())
    first = loss.latents.rows().x_t.clone()
    loss.after_step(student, 1)
    assert torch.equal(loss.latents.rows().x_t, first)
    loss.after_step(student, 2)
    # 5 paths of 4 latents: their starts are new draws, the rest is the new teacher's.
    assert not torch.isclose(loss.latents.rows().x_t, first).any(dim=0).all()
    name = next(iter(loss.average))
    start = model.parameters()[name]
    torch.testing.assert_close(loss.average[name], start + 0.05 * (1 - 0.9**2))


def test_latents_lie_on_the_teachers_paths_under_all_concepts_in_one_prompt(
    model: TextToImageModel, task: ErasureTask
) -> None:
    """At first those of theta*, and when it is time those of the average, which is not the student."""
    prompts = [", ".join(texts) for texts in zip(*task.prompts.of_concept, strict=True)]
    assert len(prompts) < len(task.prompts.forget)

    def paths(theta: Params, step: int) -> TrajectoryBank:
        drawn = step_generator(0, step, "bank")
        return sample_trajectories(model, theta, prompts, count=5, steps=4, guidance_scale=3.0, generator=drawn)

    start = model.parameters()
    student, teacher = (
        {name: p + distance if "attn2" in name else p for name, p in start.items()}
        for distance in (0.05, 0.05 * (1 - 0.9**2))
    )
    loss = new_loss(task, bank_refresh=2, ema_decay=0.9)
    assert torch.equal(loss.latents.rows().x_t, paths(start, 0).x_t)
    for step in (1, 2):
        loss.after_step(student, step)
    found, expected = loss.latents.rows(), paths(teacher, 2)
    torch.testing.assert_close(found.x_t, expected.x_t, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.t, expected.t)
    assert torch.equal(found.prompt_of, expected.prompt_of)
    assert not torch.allclose(found.x_t, paths(student, 2).x_t, rtol=1e-2, atol=1e-2)


def test_state_goes_around(model: TextToImageModel, task: ErasureTask) -> None:
    loss, student = new_loss(task, bank_refresh=1), moved(model.parameters())
    assert isinstance(loss, Moving)
    loss.after_step(student, 1)
    other = new_loss(task, bank_refresh=1)
    other.restore(loss.state())
    assert other.state().keys() == loss.state().keys()
    assert all(torch.equal(value, other.state()[name]) for name, value in loss.state().items())
    one, two = (part.batch(student, 1, 4, generator()) for part in (loss, other))
    for name in ("x_t", "t", "target"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    assert torch.equal(one.cond.tokens, two.cond.tokens)


def test_what_is_saved_is_the_teacher(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The student after each step, averaged by hand from theta* on: 0.5 average + 0.5 student."""
    students: list[Params] = []
    step = Algorithm1.take_step

    def seen(self: Algorithm1) -> object:
        record = step(self)
        students.append({name: p.detach().clone() for name, p in self.theta.items()})
        return record

    monkeypatch.setattr(Algorithm1, "take_step", seen)
    erase(tiny_model, ["zebra"], method="sdd", overrides=FAST, out=tmp_path / "run")
    start, saved = load_file(tiny_model / UNET), load_file(tmp_path / "run" / UNET)
    assert len(students) == 6
    for name, p in saved.items():
        average = start[name].double()
        for student in students:
            average = 0.5 * average + 0.5 * student[name].double()
        torch.testing.assert_close(p, average.float(), rtol=0, atol=1e-7)
        assert torch.equal(p, start[name]) == ("attn2" not in name)
    assert not torch.equal(saved[name_of(saved)], students[-1][name_of(saved)])


def name_of(parameters: Params) -> str:
    return next(name for name in parameters if "attn2.to_k" in name)


@pytest.fixture(scope="module")
def erased(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One uninterrupted run with two concepts."""
    out = tmp_path_factory.mktemp("sdd") / "run"
    erase(tiny_model, ["zebra", "yak"], method="sdd", overrides=FAST, out=out)
    return out


@pytest.mark.parametrize("stop_after", [1, 5])
def test_killed_run_resumes_to_the_same_weights(
    tiny_model: Path, erased: Path, tmp_path: Path, stop_after: int
) -> None:
    """SIGKILL before there is a state (1), and between two, when the bank is not the first any more (5)."""
    out = tmp_path / "run"
    script = (
        "import sys, time; from pathlib import Path; from metaunlearn.erasing import erase\n"
        "def slow(label, done, total):\n"
        "    if label == 'erasing': time.sleep(0.4)\n"
        f"erase(Path(sys.argv[1]), ['zebra', 'yak'], method='sdd', out=Path(sys.argv[2]), overrides={list(FAST)!r}, "
        "progress=slow)\n"
    )
    run_and_kill(script, tiny_model, out, log=out / "log.jsonl", lines=stop_after)
    erase(tiny_model, ["zebra", "yak"], method="sdd", overrides=FAST, out=out, resume=True)
    whole, cut = load_file(erased / UNET), load_file(out / UNET)
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert (out / "log.jsonl").read_text() == (erased / "log.jsonl").read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [("ema_decay=1", "ema_decay"), ("bank_refresh=0", "bank_refresh"), ("subset=xx", "subset"), ("eta=1", "eta")],
)
def test_wrong_settings_are_refused_before_any_work(
    tiny_model: Path, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        erase(tiny_model, ["zebra"], method="sdd", overrides=[override], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_batch_has_latents_with_their_own_timesteps(model: TextToImageModel, task: ErasureTask) -> None:
    loss = Sdd().begin(task)
    paths = loss.latents.rows()
    batch = loss.batch(model.parameters(), 0, 6, torch.Generator().manual_seed(1))
    for x_t, t in zip(batch.x_t, batch.t, strict=True):
        (row,) = [k for k, other in enumerate(paths.x_t) if torch.equal(other, x_t)]
        assert paths.t[row] == t
