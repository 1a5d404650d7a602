"""ESD: its targets, which parameters it trains, its trajectory bank."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler

from conftest import TINY_SIZE
from metaunlearn.checkpoint import step_generator
from metaunlearn.config import EraseSettings
from metaunlearn.data.concepts import guide_prompts, prompts_for
from metaunlearn.data.latents import LatentSet
from metaunlearn.erasing import erase
from metaunlearn.erasure import guides
from metaunlearn.erasure.esd import BankedForgetLoss, Esd, Esd2025, esd_2025_target, esd_target
from metaunlearn.erasure.interface import ErasureTask, ForgetLoss, Moving
from metaunlearn.erasure.prepare import own_picture_counts
from metaunlearn.erasure.registry import configure
from metaunlearn.erasure.trajectories import MovingLatents, TrajectoryBank, sample_for, sample_trajectories
from metaunlearn.errors import RunError, UserError
from metaunlearn.meta.batches import OuterDraw, RetainBatch
from metaunlearn.meta.objective import losses_at_theta
from metaunlearn.meta.train import Algorithm1
from metaunlearn.models import TextToImageModel, load
from metaunlearn.recipe import read_recipe
from metaunlearn.settings import resolve


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> TextToImageModel:
    return load(tiny_model)


@pytest.fixture(scope="module")
def bank(model: TextToImageModel) -> TrajectoryBank:
    return new_bank(model, seed=0)


def new_bank(model: TextToImageModel, *, seed: int, batch_size: int = 32) -> TrajectoryBank:
    generator = torch.Generator().manual_seed(seed)
    return sample_trajectories(
        model, model.parameters(), ["a knife", "a picture of a knife"], count=5, steps=4, guidance_scale=3.0,
        generator=generator, batch_size=batch_size,
    )  # fmt: skip


@torch.no_grad()
def test_a_path_is_that_of_diffusers_ddim_with_guidance_by_hand(model: TextToImageModel, bank: TrajectoryBank) -> None:
    """Path 1 of 5, whose prompt is the second: 4 steps 250 apart, each with u + 3 (c - u).

    Noise and offset are one draw of all paths; diffusers' own step goes from t to t - 1000 / 4.
    """
    drawn = torch.Generator().manual_seed(0)
    x_t = torch.randn((5, *model.latent_shape), generator=drawn)[1:2]
    offset = torch.rand(5, generator=drawn)[1]
    scheduler = DDIMScheduler.from_config(model.pipeline.scheduler.config)
    scheduler.set_timesteps(4)
    texts = model.encode_prompts(["", "a picture of a knife"]).tokens
    for step, row in enumerate(range(1, 20, 5)):
        t = int((3 - step + offset) * 250)
        torch.testing.assert_close(bank.x_t[row : row + 1], x_t, rtol=1e-4, atol=1e-4)
        assert bank.t[row] == t
        u, c = model.pipeline.unet(x_t.repeat(2, 1, 1, 1), t, encoder_hidden_states=texts).sample
        x_t = scheduler.step((u + 3 * (c - u))[None], t, x_t).prev_sample


@pytest.mark.parametrize("batch_size", [1, 3, 48])
def test_how_many_paths_are_sampled_at_once_changes_their_rounding_only(
    model: TextToImageModel, batch_size: int
) -> None:
    """Also where there are more than one draw of starts has."""
    paths = {"prompts": ["a knife", "a dog"], "count": 35, "steps": 2, "guidance_scale": 3.0}
    usual, other = (
        sample_trajectories(model, model.parameters(), **paths, generator=torch.Generator().manual_seed(0), **at_once)  # type: ignore[arg-type]
        for at_once in ({}, {"batch_size": batch_size})
    )
    assert torch.equal(usual.t, other.t)
    assert torch.equal(usual.prompt_of, other.prompt_of)
    for name in ("x_t", "unconditional", "conditional"):
        torch.testing.assert_close(getattr(usual, name), getattr(other, name), rtol=1e-4, atol=1e-4)


def test_target_lies_past_the_unconditional_prediction() -> None:
    """u = 1, c = 3: eta 0 gives u, eta 1 gives 1 - 2 = -1, eta 3 gives 1 - 6 = -5."""
    u, c = torch.tensor(1.0), torch.tensor(3.0)
    assert [esd_target(u, c, eta).item() for eta in (0, 1, 3)] == [1, -1, -5]


def test_later_target_starts_at_the_concept_itself() -> None:
    """u = 1, c = 3: 3 - eta 2 is 1 = u at eta 1 (the paper's eta 0) and -1 at eta 2 (the paper's eta 1); erased from
    something that is predicted as 5, eta 2 gives 5 - 4 = 1."""
    u, c = torch.tensor(1.0), torch.tensor(3.0)
    assert [esd_2025_target(u, c, c, eta).item() for eta in (1, 2)] == [1, -1]
    assert [esd_target(u, c, eta).item() for eta in (0, 1)] == [1, -1]
    assert esd_2025_target(u, c, torch.tensor(5.0), 2).item() == 1


def test_later_versions_batch_has_its_target(model: TextToImageModel) -> None:
    """eps_0(c) - 2 (eps_0(c) - eps_0(∅)) = 2 u - c at eta 2, which it has by itself."""
    settings = resolve(EraseSettings, read_recipe("small").erase, ["bank_trajectories=2", "bank_steps=4"])
    task = ErasureTask(model=model, prompts=prompts_for(model.pipeline, ["zebra"]), settings=settings, seed=0)
    batch = Esd2025().begin(task).batch(model.parameters(), 0, 6, torch.Generator().manual_seed(1))
    with torch.no_grad():
        u = model.predict(model.parameters(), batch.x_t, batch.t, model.unconditional().expand(6))
        c = model.predict(model.parameters(), batch.x_t, batch.t, batch.cond)
    torch.testing.assert_close(batch.target, 2 * u - c)
    assert not torch.allclose(batch.target, 2 * c - u)


def test_later_version_trains_no_norms(model: TextToImageModel) -> None:
    """Its layers are Linear and Conv2d; its u, unlike the paper's, holds the time embedding and the output layer."""
    names = model.parameters().keys()
    assert Esd2025().trained(model) == {name for name in names if "attn2" in name}
    u = Esd2025(subset="u").trained(model)
    assert {"time_embedding.linear_1.weight", "conv_out.bias", "conv_in.weight"} <= u
    assert not any("norm" in name or "attn2" in name for name in u)
    assert u | Esd2025().trained(model) == Esd2025(subset="f").trained(model)
    assert len(Esd2025(subset="x-strict").trained(model)) == 8


def test_later_version_refuses_a_subset_that_is_not_its_own() -> None:
    with pytest.raises(UserError, match=r"subset = 'selfattn'.*'x-strict'"):
        configure("esd-2025", read_recipe("small"), ["subset=selfattn"])


def test_bank_holds_the_teachers_own_predictions(model: TextToImageModel, bank: TrajectoryBank) -> None:
    theta = model.parameters()
    empty = model.unconditional().expand(len(bank))
    with torch.no_grad():
        torch.testing.assert_close(model.predict(theta, bank.x_t, bank.t, empty), bank.unconditional)
        conditional = model.predict(theta, bank.x_t, bank.t, bank.cond[bank.prompt_of])
    torch.testing.assert_close(conditional, bank.conditional)


def test_bank_covers_the_timesteps(bank: TrajectoryBank) -> None:
    """Five paths of four latents each: every quarter of the schedule holds one latent of every path."""
    assert len(bank) == 20
    assert torch.bincount(bank.t // 250).tolist() == [5, 5, 5, 5]


@pytest.mark.parametrize("eta", [1.0, 3.0])
def test_the_loss_of_the_teacher_is_the_distance_to_the_target(
    model: TextToImageModel, bank: TrajectoryBank, eta: float
) -> None:
    """The student starts as the teacher: its error is ||c - (u - eta (c - u))||^2 = (1 + eta)^2 ||c - u||^2."""
    forget = BankedForgetLoss(bank, esd_target(bank.unconditional, bank.conditional, eta))
    batch_of = forget.batch(model.parameters(), 0, 3, torch.Generator().manual_seed(5))
    rows = torch.randint(len(bank), (3,), generator=torch.Generator().manual_seed(5))
    kept = LatentSet.encode(model, torch.zeros(2, 3, TINY_SIZE, TINY_SIZE), ["a key", "a key"])
    batch = kept.draw(2, torch.Generator().manual_seed(3))
    retain = RetainBatch(batch, 1)
    batches = OuterDraw(forget=batch_of, retain=retain, meta_retain=retain, direct=retain, inner=(), outer=batch)
    with torch.no_grad():
        losses = losses_at_theta(model, model.parameters(), batches, direct=False)
    distance = (bank.conditional[rows] - bank.unconditional[rows]).square().mean()
    torch.testing.assert_close(losses.forget, (1 + eta) ** 2 * distance)


def test_with_a_guide_the_target_starts_at_the_prompt_with_the_guide_in_it(model: TextToImageModel) -> None:
    """eps_0(g) - 2 (eps_0(c) - eps_0(g)) at every latent, "a picture of zebra" beside "a picture of horse"."""
    loss, _ = begun_with_guides(model, Esd(subset="u", eta=2.0, guide=("horse",)))
    assert isinstance(loss, BankedForgetLoss)
    bank = loss.bank
    prompts = ["horse", *(f"{a} of horse" for a in ("a photo", "a picture", "an image", "a drawing"))]
    with torch.no_grad():
        g = model.predict(model.parameters(), bank.x_t, bank.t, model.encode_prompts(prompts)[bank.prompt_of])
    torch.testing.assert_close(loss.target, 3 * g - 2 * bank.conditional)


def test_several_guides_take_turns_at_random(model: TextToImageModel) -> None:
    """At eta 0 each target is what the teacher predicts with one of the two guides, about half of them with each; the
    latents and the draws of a batch are those without a guide."""
    loss, task = begun_with_guides(model, Esd(subset="u", eta=0.0, guide=("horse", "donkey")))
    plain, _ = begun_with_guides(model, Esd(subset="u", eta=0.0))
    assert isinstance(loss, BankedForgetLoss)
    assert isinstance(plain, BankedForgetLoss)
    bank = loss.bank
    assert torch.equal(bank.x_t, plain.bank.x_t)
    assert torch.equal(plain.target, plain.bank.unconditional)
    closest = []
    for guide in ("horse", "donkey"):
        cond = model.encode_prompts(guide_prompts(model.pipeline, task.prompts, guide))
        with torch.no_grad():
            answer = model.predict(model.parameters(), bank.x_t, bank.t, cond[bank.prompt_of])
        closest.append((answer - loss.target).flatten(1).norm(dim=1) < 1e-4)
    horses, donkeys = closest
    assert (horses ^ donkeys).all()
    assert 0.25 * len(bank) < horses.sum() < 0.75 * len(bank)


@pytest.mark.parametrize(("picture_batch", "at_once"), [("none", 64), ("3", 6), ("100", 64)])
def test_guides_ask_the_teacher_for_as_many_rows_as_fit(
    model: TextToImageModel, monkeypatch: pytest.MonkeyPatch, picture_batch: str, at_once: int
) -> None:
    """As the paths were sampled, with two answers for each; the same answers but for rounding."""
    method, asked = Esd(subset="u", eta=1.0, guide=("horse", "donkey")), []
    overrides = ("bank_trajectories=10", "bank_steps=8", f"picture_batch={picture_batch}")
    usual, _ = begun_with_guides(model, method, *overrides[:2])
    ask = guides.teachers_answer
    monkeypatch.setattr(guides, "teachers_answer", lambda *a: asked.append(len(a[2])) or ask(*a))  # type: ignore[func-returns-value]
    loss, _ = begun_with_guides(model, method, *overrides)
    assert isinstance(loss, BankedForgetLoss)
    assert isinstance(usual, BankedForgetLoss)
    assert (max(asked), sum(asked)) == (at_once, 80)
    torch.testing.assert_close(loss.target, usual.target, rtol=1e-3, atol=1e-3)


def test_guides_work_on_latents_of_the_edited_model_too(model: TextToImageModel) -> None:
    loss, task = begun_with_guides(model, Esd(subset="u", eta=2.0, guide=("horse",), latents="edited"))
    batch = loss.batch(model.parameters(), 1, 3, torch.Generator().manual_seed(1))
    cond = model.encode_prompts(guide_prompts(model.pipeline, task.prompts, "horse"))
    forget = model.encode_prompts(task.prompts.forget)
    of_row = [int((forget.tokens == row).flatten(1).all(dim=1).nonzero()) for row in batch.cond.tokens]
    with torch.no_grad():
        g = model.predict(model.parameters(), batch.x_t, batch.t, cond[torch.tensor(of_row)])
        c = model.predict(model.parameters(), batch.x_t, batch.t, batch.cond)
    torch.testing.assert_close(batch.target, 3 * g - 2 * c)


def test_guides_are_settings_of_the_published_esd_alone() -> None:
    assert configure("esd-f-0", read_recipe("small"), ["guide=a horse, a donkey"]).method == Esd(
        subset="f", eta=0.0, guide=("a horse", "a donkey")
    )
    with pytest.raises(UserError, match="guide"):
        configure("esd-2025", read_recipe("small"), ["guide=a horse"])


def begun_with_guides(model: TextToImageModel, method: Esd, *overrides: str) -> tuple[ForgetLoss, ErasureTask]:
    overrides = overrides or ("bank_trajectories=7", "bank_steps=4")
    settings = resolve(EraseSettings, read_recipe("small").erase, overrides)
    task = ErasureTask(model=model, prompts=prompts_for(model.pipeline, ["zebra"]), settings=settings, seed=0)
    return method.begin(task), task


def test_latents_of_the_edited_model_have_the_teachers_target(model: TextToImageModel) -> None:
    """eps_0(∅) - 2 (eps_0(c) - eps_0(∅)) of theta*, at latents that the moved parameters sampled."""
    settings = resolve(EraseSettings, read_recipe("small").erase, ["bank_trajectories=2", "bank_steps=4"])
    task = ErasureTask(model=model, prompts=prompts_for(model.pipeline, ["zebra"]), settings=settings, seed=0)
    loss = Esd(subset="u", eta=2.0, latents="edited", bank_refresh=2).begin(task)
    assert isinstance(loss, Moving)
    theta, edited = model.parameters(), {name: p + 0.05 for name, p in model.parameters().items()}
    first = loss.state()["x_t"]
    loss.after_step(edited, 1)
    assert loss.state()["x_t"] is first
    loss.after_step(edited, 2)
    bank = sample_trajectories(
        model, edited, task.prompts.forget, count=2, steps=4, guidance_scale=3.0, generator=step_generator(0, 2, "bank")
    )
    assert torch.equal(loss.state()["x_t"], bank.x_t)
    batch = loss.batch(edited, 2, 3, torch.Generator().manual_seed(1))
    with torch.no_grad():
        u = model.predict(theta, batch.x_t, batch.t, model.unconditional().expand(3))
        c = model.predict(theta, batch.x_t, batch.t, batch.cond)
    torch.testing.assert_close(batch.target, 3 * u - 2 * c)


def test_a_cut_run_on_latents_of_the_edited_model_resumes_to_the_same_weights(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = (
        "steps=5", "forget_images=4", "retain_images=4", "bank_trajectories=2", "bank_steps=3", "batch_size=2",
        "checkpoint_every=2", "latents=edited", "bank_refresh=3",
    )  # fmt: skip
    options = {"method": "esd-x-1", "meta": False, "overrides": overrides}
    whole = erase(tiny_model, ["zebra"], **options).pipeline.unet.state_dict()  # type: ignore[arg-type]
    step = Algorithm1.take_step

    def breaks(self: Algorithm1) -> object:
        if self.step == 4:
            raise RunError("killed")
        return step(self)

    monkeypatch.setattr(Algorithm1, "take_step", breaks)
    with pytest.raises(RunError, match="killed"):
        erase(tiny_model, ["zebra"], out=tmp_path / "run", **options)  # type: ignore[arg-type]
    monkeypatch.undo()
    sampled = []
    sample = MovingLatents.sample
    monkeypatch.setattr(MovingLatents, "sample", lambda *call: sampled.append(call[-1]) or sample(*call))
    cut = erase(tiny_model, ["zebra"], out=tmp_path / "run", resume=True, **options).pipeline  # type: ignore[arg-type]
    assert all(torch.equal(whole[name], p) for name, p in cut.unet.state_dict().items())
    assert not sampled  # Those of step 3 were kept, and the next are due at step 6.
    options["overrides"] = (*overrides[:-2], "latents=frozen")
    frozen = erase(tiny_model, ["zebra"], **options)  # type: ignore[arg-type]
    assert not all(torch.equal(whole[name], p) for name, p in frozen.pipeline.unet.state_dict().items())


def test_a_bank_has_a_path_of_every_concept(model: TextToImageModel) -> None:
    """However few are asked for; and as many pictures, whose prompts take turns in the same way."""
    settings = resolve(
        EraseSettings, read_recipe("small").erase, ["bank_trajectories=1", "bank_steps=2", "forget_images=2"]
    )
    prompts = prompts_for(model.pipeline, ["zebra|yak", "gnu"])
    task = ErasureTask(model=model, prompts=prompts, settings=settings, seed=0)
    bank = sample_for(task, model.parameters(), prompts.forget, torch.Generator().manual_seed(0))
    assert bank.prompt_of.unique().tolist() == [0, 1, 2]
    assert prompts.forget[:3] == ("zebra", "yak", "gnu")
    assert own_picture_counts(prompts, settings)["forget"] == 3


def test_bank_is_deterministic(model: TextToImageModel, bank: TrajectoryBank) -> None:
    again = new_bank(model, seed=0)
    assert all(torch.equal(value, again.tensors()[name]) for name, value in bank.tensors().items())
    assert not torch.equal(new_bank(model, seed=1).x_t, bank.x_t)
