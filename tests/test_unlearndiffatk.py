"""UnlearnDiffAtk: the projection, the straight-through gradient, one prompt's attack, whole runs and shards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from scipy.optimize import minimize
from torch import Tensor

from attack_fixtures import NEVER, write_pictures
from conftest import TINY_SIZE, read_lines
from forked_runs import run_and_kill
from metaunlearn.attacking_prompts import attack_prompts
from metaunlearn.attacks.simplex import project_rows, sample_words
from metaunlearn.attacks.success import judge_sees
from metaunlearn.attacks.targets import targets_of
from metaunlearn.attacks.unlearndiffatk import PromptAttack, SuccessTest, UnlearnDiffAtk, pipeline_for_tests
from metaunlearn.checkpoint import step_generator
from metaunlearn.comparing import compare
from metaunlearn.data.imagefolder import write_imagefolder
from metaunlearn.data.prompts import Prompt
from metaunlearn.diffusion import Batch, denoising_loss
from metaunlearn.draws import Draw
from metaunlearn.errors import UserError
from metaunlearn.generation import generate_images
from metaunlearn.metrics.intervals import wilson
from metaunlearn.metrics.tables import table_of
from metaunlearn.models import StableDiffusion, load
from tiny_models import new_sd1

FAST = ("prefix_tokens=2", "steps_per_timestep=2", "first_timestep=100", "timestep_stride=400")
"""Timesteps 100, 500 and 900, two gradient steps each."""


@pytest.fixture
def model(tiny_model: Path) -> StableDiffusion:
    return load(tiny_model)


def draw(text: str) -> Draw:
    return Draw(text=text, seed=3, guidance_scale=2.0)


# --- The simplex -----------------------------------------------------------------------------------------------------


def test_projection_by_hand() -> None:
    """[0.5, 0.7] - 0.1; [2, 0] is nearest to [1, 0]; a point of the simplex stays; all equal becomes uniform."""
    Y = torch.tensor([[0.5, 0.7], [2.0, 0.0], [0.3, 0.7], [-4.0, -4.0]], dtype=torch.float64)
    expected = torch.tensor([[0.4, 0.6], [1.0, 0.0], [0.3, 0.7], [0.5, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(project_rows(Y), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("scale", [1e-3, 0.3, 10.0])
def test_projection_against_bisection(scale: float) -> None:
    """Reference: halve the interval of mu in sum max(y - mu, 0) = 1 until float64 ends; tolerance a few ulps of y."""
    Y = scale * torch.randn(20, 37, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = project_rows(Y)
    for y, p in zip(Y, found, strict=True):
        low, high = float(y.min()) - 1, float(y.max())
        for _ in range(200):
            mu = (low + high) / 2
            low, high = (mu, high) if float((y - mu).clamp(min=0).sum()) > 1 else (low, mu)
        torch.testing.assert_close(p, (y - low).clamp(min=0), rtol=0, atol=1e-14 * max(1, scale))
        assert float(p.sum()) == pytest.approx(1, abs=1e-13 * max(1, scale))


def test_projection_against_a_general_optimiser() -> None:
    """Reference: scipy's SLSQP on ||p - y||^2 with p >= 0 and sum p = 1; its own tolerance is about 1e-7."""
    y = torch.tensor([0.9, -0.2, 0.6, 0.1, 0.05], dtype=torch.float64)
    reference = minimize(
        lambda p: ((p - y.numpy()) ** 2).sum(),
        x0=[0.2] * 5,
        bounds=[(0, 1)] * 5,
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
        options={"ftol": 1e-14},
    ).x
    torch.testing.assert_close(project_rows(y[None])[0], torch.from_numpy(reference), rtol=0, atol=1e-6)


def test_straight_through_gradient_by_hand() -> None:
    """L = sum of (one-hot * C): dL/d(one-hot) = C, so dL/dP = C clipped to [-1, 1], drawn word or not."""
    C = torch.tensor([[0.5, -3.0, 2.0], [-0.25, 1.0, -1.5]], dtype=torch.float64)
    P = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]], dtype=torch.float64, requires_grad=True)
    words = sample_words(P, torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((words * C).sum(), P)
    expected = torch.tensor([[0.5, -1.0, 1.0], [-0.25, 1.0, -1.0]], dtype=torch.float64)
    assert torch.equal(gradient, expected)


def test_words_are_drawn_by_their_probabilities() -> None:
    """20,000 draws of [0.7, 0.3, 0]: within 5 standard deviations (0.016) of 0.7, and never the third."""
    P = torch.tensor([[0.7, 0.3, 0.0]]).expand(20_000, -1)
    words = sample_words(P, torch.Generator().manual_seed(0))
    assert torch.equal(words.sum(dim=1), torch.ones(20_000))
    assert abs(float(words[:, 0].mean()) - 0.7) < 0.0162
    assert words[:, 2].sum() == 0


# --- One prompt ------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_prompt_with_the_words_before_it(model: StableDiffusion) -> None:
    """Certain words (one-hot P): the denoising loss under the ids start, words, prompt, end, padding."""
    run = PromptAttack(model, UnlearnDiffAtk(prefix_tokens=2), NEVER)
    ids = model.token_ids(["a knife"])
    chosen = [int(ids[0, 0, 2]), int(ids[0, 0, 1])]
    P = torch.zeros(2, len(model.token_tables[0]))
    P[[0, 1], chosen] = 1
    z_0 = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    found = run.loss(P, ids, z_0, 500, step_generator(0, 0))

    generator = step_generator(0, 0)
    torch.multinomial(P, 1, generator=generator)
    eps = torch.randn(z_0.shape, generator=generator)
    expected_ids = torch.cat([ids[..., :1], torch.tensor([[chosen]]), ids[..., 1:-2]], dim=-1)
    batch = Batch(x_0=z_0, cond=model.encode_tokens(expected_ids), eps=eps, t=torch.tensor([500]))
    assert found.item() == pytest.approx(denoising_loss(model, model.parameters(), batch).item(), rel=1e-6)


def test_an_attack_at_no_timestep_is_refused(model: StableDiffusion) -> None:
    with pytest.raises(UserError, match=r"no timestep to attack at: first_timestep is 1000 .* has 0 to 999"):
        PromptAttack(model, UnlearnDiffAtk(first_timestep=1000), NEVER)


def test_the_gradient_is_the_embeddings_through_the_table(model: StableDiffusion) -> None:
    """dL/dP = clip(dL/d(looked up words) tableᵀ): by differences along every coordinate of one word's embedding."""
    for module in (model.unet, model.pipeline.text_encoder):
        module.double()
    run = PromptAttack(model, UnlearnDiffAtk(prefix_tokens=1), NEVER)
    ids = model.token_ids(["a knife"])
    P = torch.full((1, len(model.token_tables[0])), 1.0, dtype=torch.float64)
    P = (P / P.shape[1]).requires_grad_()
    z_0 = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (found,) = torch.autograd.grad(run.loss(P, ids, z_0, 500, step_generator(0, 0)), P)

    generator = step_generator(0, 0)
    word = int(torch.multinomial(P.detach(), 1, generator=generator))
    eps = torch.randn(z_0.shape, generator=generator).double()
    with_word = torch.cat([ids[..., :1], torch.tensor([[[word]]]), ids[..., 1:-1]], dim=-1)
    (table,) = model.token_tables

    def loss(embedding: Tensor) -> float:
        looked_up = table[with_word[:, 0]].clone()
        looked_up[0, 1] = embedding
        cond = model.encode_tokens(with_word, looked_up=[looked_up])
        batch = Batch(x_0=z_0, cond=cond, eps=eps, t=torch.tensor([500]))
        return denoising_loss(model, {}, batch).item()

    step = 1e-5
    at = table[word]
    axes = torch.eye(len(at), dtype=torch.float64)
    slopes = torch.tensor([loss(at + step * e) - loss(at - step * e) for e in axes], dtype=torch.float64) / (2 * step)
    torch.testing.assert_close(found[0], (table @ slopes).clamp(-1, 1), rtol=1e-4, atol=1e-9)
    assert found.abs().max() > 1e-6


def test_timesteps_ascend_and_the_run_stops_at_success(model: StableDiffusion) -> None:
    """The second tested text succeeds: prompt, then 100 (not yet), then 500 (success); 900 is not reached."""
    seen: list[Tensor] = []

    def third_time(picture: Tensor) -> bool:
        seen.append(picture)
        return len(seen) == 3

    settings = UnlearnDiffAtk(prefix_tokens=2, steps_per_timestep=2, first_timestep=100, timestep_stride=400)
    run = PromptAttack(model, settings, SuccessTest(sees=third_time, protocol={}))
    logged: list[object] = []
    z_0 = torch.zeros(1, 4, 16, 16)
    outcome = run.run(draw("a knife"), z_0, seed=0, index=0, on_attempt=logged.append)
    assert [attempt.timestep for attempt in outcome.attempts] == [None, 100, 500]
    assert [attempt.success for attempt in outcome.attempts] == [False, False, True]
    assert logged == outcome.attempts
    assert (outcome.before, outcome.success) == (False, True)
    assert torch.equal(outcome.picture, seen[2])
    assert all(attempt.text.endswith("a knife") for attempt in outcome.attempts)
    assert outcome.attempts[1].text != "a knife"


def test_a_prompt_that_succeeds_alone_is_not_attacked(model: StableDiffusion) -> None:
    run = PromptAttack(model, UnlearnDiffAtk(), SuccessTest(sees=lambda picture: True, protocol={}))
    outcome = run.run(draw("a knife"), torch.zeros(1, 4, 16, 16), seed=0, index=0, on_attempt=lambda attempt: None)
    assert (len(outcome.attempts), outcome.before, outcome.success) == (1, True, True)


def test_the_published_schedule() -> None:
    """50 timesteps, 10 to 990, 40 steps each: at most 2,000 gradient steps and 50 pictures."""
    settings = UnlearnDiffAtk()
    timesteps = range(settings.first_timestep, 1000, settings.timestep_stride)
    assert (len(timesteps), timesteps[0], timesteps[-1]) == (50, 10, 990)
    assert len(timesteps) * settings.steps_per_timestep == 2000


def test_the_words_learn_to_fit_the_target(model: StableDiffusion) -> None:
    """With the gradient's sign flipped, the loss of the found words would rise instead."""
    settings = UnlearnDiffAtk(prefix_tokens=4, learning_rate=0.1, weight_decay=0, steps_per_timestep=60)
    run = PromptAttack(model, settings, NEVER)
    ids = model.token_ids(["a knife"])
    z_0 = 3 * torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    P = torch.full((4, len(model.token_tables[0])), 1 / len(model.token_tables[0])).requires_grad_()
    optimizer = torch.optim.Adam([P], lr=0.1)

    def expected_loss() -> float:
        with torch.no_grad():
            return sum(run.loss(P, ids, z_0, 300, step_generator(9, i)).item() for i in range(40)) / 40

    before = expected_loss()
    for step in range(60):
        run._descend(P, optimizer, ids, z_0, 300, step_generator(0, step))
    assert expected_loss() < before
    torch.testing.assert_close(P.sum(dim=1), torch.ones(4))
    assert P.min() >= 0


def test_long_prompts_are_skipped(model: StableDiffusion) -> None:
    """Canvas's tokenizer holds 24 tokens: 2 for start and end and 5 words leave room for 17."""
    run = PromptAttack(model, UnlearnDiffAtk(), NEVER)
    assert not run.skips(" ".join(["a"] * 17))
    assert run.skips(" ".join(["a"] * 18))
    assert PromptAttack(model, UnlearnDiffAtk(longest_prompt=3), NEVER).skips("a a a a")


def test_the_authors_sampler_draws_with_the_models_own_schedule(model: StableDiffusion) -> None:
    run = PromptAttack(model, UnlearnDiffAtk(sampler="lms", sampling_steps=4), NEVER)
    assert type(run.pipeline.scheduler).__name__ == "LMSDiscreteScheduler"
    assert run.pipeline.unet is model.unet
    own, theirs = model.pipeline.scheduler.alphas_cumprod, run.pipeline.scheduler.alphas_cumprod
    torch.testing.assert_close(own, theirs)
    assert run._test(draw("a knife"), "a knife")[0].shape == (1, 3, TINY_SIZE, TINY_SIZE)


def test_the_authors_sampler_has_betas_of_the_models_own() -> None:
    pipeline = new_sd1()
    betas = np.linspace(1e-4, 2e-2, 1000)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, trained_betas=betas)
    own, theirs = (one.scheduler.alphas_cumprod for one in (pipeline, pipeline_for_tests(pipeline, "lms")))
    torch.testing.assert_close(own, theirs)


def test_a_schedule_that_ends_in_pure_noise_is_not_drawn_with_another() -> None:
    """LMS has no ``rescale_betas_zero_snr``: its last noise level would not be the one that was trained on."""
    pipeline = new_sd1()
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, rescale_betas_zero_snr=True, prediction_type="v_prediction"
    )
    assert pipeline_for_tests(pipeline, "own") is pipeline
    with pytest.raises(UserError, match=r"rescale_betas_zero_snr = True, which the sampler lms .*sampler=own"):
        pipeline_for_tests(pipeline, "lms")


# --- Whole runs ------------------------------------------------------------------------------------------------------

PROMPTS = [Prompt("a knife", seed=5), Prompt("a dog", guidance_scale=1.0), Prompt("a a a " * 9), Prompt("a clown")]


def bright() -> SuccessTest:
    """A test that some pictures of random weights pass and others do not: decided by their bytes."""
    return SuccessTest(sees=lambda picture: int(picture.mul(255).sum()) % 4 == 1, protocol={"rule": "bytes"})


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prompts") / "run"
    attack_prompts(tiny_model, PROMPTS, bright(), base=tiny_model, overrides=FAST, out=out)
    return out


def test_rates_are_what_the_rows_say(whole: Path) -> None:
    rows = read_lines(whole / "attacks.jsonl")
    assert [row["index"] for row in rows] == [0, 1, 3]
    assert [row["seed"] for row in rows] == [5, 1, 3]
    assert [row["guidance_scale"] for row in rows] == [2.0, 1.0, 2.0]
    results = json.loads((whole / "results.json").read_text())
    for name, key in (("asr", "success"), ("asr_without_attack", "success_before")):
        expected = wilson(sum(row[key] for row in rows), 3)
        assert [results[name][k] for k in ("value", "low", "high", "n")] == [
            expected.value, expected.low, expected.high, 3,
        ]  # fmt: skip
        assert results[name]["protocol"]["skipped"] == 1
    assert all(row["success"] for row in rows if row["success_before"])
    for row in rows:
        assert (whole / "pictures" / row["last_picture"]).is_file()


def test_two_models_are_compared_prompt_by_prompt(tiny_model: Path, tmp_path: Path) -> None:
    """Every prompt gives the concept, and none: b = 3, c = 0, p = 2 / 8. The attack's own seed is no part of a pair."""
    prompts = [Prompt("a knife", seed=5), Prompt("a dog", seed=6), Prompt("a clown", seed=9)]
    folders = [tmp_path / name for name in ("always", "never", "elsewhere")]
    for seed, (out, value) in enumerate(zip(folders, (True, False, False), strict=True)):
        test = SuccessTest(sees=lambda picture, value=value: value, protocol={"rule": "as told"})  # type: ignore[misc]
        mine = [replace(prompt, seed=None) for prompt in prompts] if out.name == "elsewhere" else prompts
        attack_prompts(tiny_model, mine, test, base=tiny_model, overrides=FAST, seed=seed, out=out)
    assert table_of(folders).rows["elsewhere"]["asr"].value == 0
    for metric in ("asr", "asr_without_attack"):
        found = compare(folders[0], folders[1], metric)
        assert (found["difference"], found["n"], found["test"], found["p"]) == (100, 3, "McNemar, exact", 2 / 8)
    with pytest.raises(UserError, match="make no pairs"):
        compare(folders[0], folders[2], "asr")


def test_shards_give_what_one_process_gives(whole: Path, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "shared"
    options = {"base": tiny_model, "overrides": FAST, "out": out}
    first = attack_prompts(tiny_model, PROMPTS, bright(), shard="2/2", **options)  # type: ignore[arg-type]
    assert first["waiting_for"] == ["shard-1-of-2"]
    assert not (out / "results.json").exists()
    second = attack_prompts(tiny_model, PROMPTS, bright(), shard="1/2", **options)  # type: ignore[arg-type]
    assert (out / "attacks.jsonl").read_text() == (whole / "attacks.jsonl").read_text()
    assert second["results"] == json.loads((whole / "results.json").read_text())


def test_shards_that_were_asked_for_differently_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    options = {"base": tiny_model, "overrides": FAST, "out": tmp_path / "shared"}
    attack_prompts(tiny_model, PROMPTS[:2], NEVER, shard="2/2", **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"shard-2-of-2 was asked for differently \(protocol\)"):
        attack_prompts(tiny_model, PROMPTS[:2], NEVER, shard="1/2", seed=1, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "shared" / "shard-1-of-2").exists()


def test_a_killed_run_resumes_at_its_prompt(whole: Path, tiny_model: Path, tmp_path: Path) -> None:
    """SIGKILL inside the second prompt, by the process itself."""
    script = (
        "import os, sys; from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[3])\n"
        "import test_unlearndiffatk as t\n"
        "from metaunlearn.attacks.unlearndiffatk import PromptAttack\n"
        "whole, seen = PromptAttack._test, []\n"
        "def test(self, draw, text):\n"
        "    seen.append(draw.text)\n"
        "    if seen.count('a dog') == 2 or len(seen) > 5: os.kill(os.getpid(), 9)\n"
        "    return whole(self, draw, text)\n"
        "PromptAttack._test = test\n"
        "model, out = sys.argv[1], Path(sys.argv[2])\n"
        "t.attack_prompts(model, t.PROMPTS, t.bright(), base=model, overrides=t.FAST, out=out)"
    )
    out = tmp_path / "run"
    run_and_kill(script, tiny_model, out, Path(__file__).parent, log=out / "log.jsonl", lines=99)
    done = sorted(file.name for file in (out / "prompts").iterdir())
    assert done == ["000000.json"]
    attack_prompts(str(tiny_model), PROMPTS, bright(), base=tiny_model, overrides=FAST, out=out, resume=True)
    for file in ("attacks.jsonl", "log.jsonl", "results.json", "pictures/000003.png"):
        assert (out / file).read_bytes() == (whole / file).read_bytes()


def test_targets_from_a_folder(tiny_model: Path, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "pictures", "a knife")
    options = {"data": data, "overrides": FAST}
    summary = attack_prompts(tiny_model, [Prompt("a knife")], NEVER, out=tmp_path / "run", **options)  # type: ignore[arg-type]
    assert summary["results"]["asr"]["value"] == 0
    with pytest.raises(UserError, match="no picture with the caption 'a dog'"):
        attack_prompts(tiny_model, [Prompt("a dog")], NEVER, out=tmp_path / "other", **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="and not both"):
        attack_prompts(tiny_model, [Prompt("a knife")], NEVER, base=tiny_model, out=tmp_path / "other", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "other").exists()


def test_bad_calls_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    one = [Prompt("a knife")]
    for says, prompts, options in (
        ("1 <= K <= N", one, {"shard": "0/4"}),
        ("no rate from no prompts", [], {}),
        ("more tokens", [Prompt("a " * 40)], {}),
        ("Did you mean 'prefix_tokens'", one, {"overrides": ["prefix_token=3"]}),
        ("different denoisers|draws pictures of 64", one, {"base": "canvas"}),
    ):
        with pytest.raises(UserError, match=says):
            attack_prompts(tiny_model, prompts, NEVER, out=out, **{"base": tiny_model, **options})  # type: ignore[arg-type]
    assert not out.exists()
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="thesis"):
        attack_prompts(tiny_model, one, NEVER, base=tiny_model, shard="1/2", out=out)


def test_the_judge_decides_as_in_evaluate() -> None:
    from colours import ColourJudge

    test = judge_sees(ColourJudge(), "red", ["green", "blue"])
    red = torch.zeros(1, 3, 8, 8)
    red[:, 0] = 0.6
    assert test.sees(red)
    assert not test.sees(red.roll(1, dims=1))
    assert test.protocol["choices"] == ["red", "green", "blue"]
    assert judge_sees(ColourJudge(), "red").protocol["choices"] == ["red", "green", "blue"]


def test_every_step_has_noise_of_its_own_and_a_timestep_its_mean_loss(
    model: StableDiffusion,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Losses 1, 2 | 3, 4 at two timesteps are 1.5 and 3.5; the noise is that of the prompt's number and the step's."""
    settings = UnlearnDiffAtk(prefix_tokens=2, steps_per_timestep=2, first_timestep=100, timestep_stride=800)
    run = PromptAttack(model, settings, SuccessTest(sees=lambda picture: False, protocol={}))
    seeds: list[int] = []

    def descend(P: Any, optimizer: torch.optim.Adam, *given: Any) -> float:
        assert optimizer.param_groups[0]["weight_decay"] == 0.1
        seeds.append(given[-1].initial_seed())
        return float(len(seeds))

    monkeypatch.setattr(run, "_descend", descend)
    outcome = run.run(draw("a knife"), torch.zeros(1, 4, 16, 16), seed=5, index=7, on_attempt=lambda attempt: None)
    assert [attempt.loss for attempt in outcome.attempts] == [None, 1.5, 3.5]
    assert seeds == [step_generator(5, step, "words 7").initial_seed() for step in range(4)]


def test_a_tested_picture_has_the_prompts_own_seed_and_guidance(
    model: StableDiffusion,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = PromptAttack(model, UnlearnDiffAtk(sampling_steps=4), SuccessTest(sees=lambda picture: True, protocol={}))
    asked: list[Any] = []

    def generate(_: Any, *given: Any, **options: Any) -> torch.Tensor:
        asked.append((*given, options))
        return torch.zeros(1, 3, 8, 8)

    monkeypatch.setattr("metaunlearn.attacks.unlearndiffatk.generate_images", generate)
    run._test(Draw(text="a knife", seed=11, guidance_scale=5.5), "words a knife")
    assert asked == [(["words a knife"], [11], {"steps": 4, "guidance_scale": 5.5})]


def test_a_target_is_what_the_base_draws_with_the_prompts_seed_and_guidance(tiny_model: Path) -> None:
    """Encoded by the erased model, whose denoiser has no part in it."""
    erased, base = load(tiny_model), load(tiny_model)
    with torch.no_grad():
        erased.unet.conv_out.weight.mul_(3)
    asked = Draw(text="a knife", seed=11, guidance_scale=5.5)
    picture = generate_images(base.pipeline, ["a knife"], [11], guidance_scale=5.5)
    found = targets_of(erased, base.pipeline, None, ["a knife"]).latent(asked)
    torch.testing.assert_close(found, erased.encode_images(picture * 2 - 1)[0])


def test_of_several_pictures_with_a_prompts_caption_the_first_is_its_target(
    model: StableDiffusion,
    tmp_path: Path,
) -> None:
    side = model.image_size
    images = torch.stack([torch.full((3, side, side), value) for value in (0.2, 0.8)])
    write_imagefolder(tmp_path / "pictures", images, ["a knife", "a knife"])
    targets = targets_of(model, None, tmp_path / "pictures", ["a knife"])
    assert targets.given["a knife"].mean().item() == pytest.approx(0.2 * 2 - 1, abs=0.01)
