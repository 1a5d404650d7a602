"""Attacks that train: what each moves and what it must not touch, what it leaves behind, and resuming bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from attack_fixtures import (
    FAST,
    TEXT,
    UNET,
    VAE,
    assert_same_run,
    bare,
    changed,
    losses,
    stopped_then_resumed,
    write_pictures,
)
from conftest import TINY_SIZE, new_tiny_pipeline
from forked_runs import run_and_kill
from metaunlearn.attacking import attack
from metaunlearn.attacks import lora, textual_inversion
from metaunlearn.attacks.dreambooth import DreamBooth
from metaunlearn.attacks.interface import AttackTask
from metaunlearn.attacks.loop import Loop
from metaunlearn.attacks.lora import Lora
from metaunlearn.attacks.registry import KINDS, configure
from metaunlearn.attacks.textual_inversion import TextualInversion
from metaunlearn.attacks.tuned import Tuned
from metaunlearn.checkpoint import step_generator
from metaunlearn.config import AttackSettings
from metaunlearn.data.imagefolder import ImageText, read_imagefolder, to_uint8
from metaunlearn.data.latents import LatentSet
from metaunlearn.data.sampling import independent_rows
from metaunlearn.diffusion import denoising_loss
from metaunlearn.errors import UserError
from metaunlearn.generation import generate_images
from metaunlearn.lowrank import merged, new_factors
from metaunlearn.models import load
from metaunlearn.recipe import RecipeFile, read_recipe

SETTINGS: dict[str, tuple[str, ...]] = {
    "finetune": ("text_encoder=true", "subset=x"),
    "lora": ("rank=2", "alpha=3", "learning_rate=0.01"),
    "dreambooth": ("class_prompt=a dog", "prior_images=3", "subset=x"),
    "textual-inversion": ("initial_token=a", "token=<new>", "templates=a {}|a picture of {}", "accumulation=2"),
}
"""Each kind with settings that are not its defaults."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def runs(tiny_model: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Five steps of every kind."""
    top = tmp_path_factory.mktemp("attacked")
    for kind, settings in SETTINGS.items():
        attack(tiny_model, pictures, kind=kind, steps=(0, 2, 5), overrides=[*FAST, *settings], out=top / kind)
    return {kind: top / kind for kind in SETTINGS}


# --- All kinds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SETTINGS)
def test_every_checkpoint_is_a_pipeline_and_its_own_run(runs: dict[str, Path], kind: str) -> None:
    for step in (0, 2, 5):
        folder = runs[kind] / f"step-{step:06d}"
        DiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)
        assert json.loads((folder / "run.json").read_text())["step"] == step
    assert len(losses(runs[kind])) == 5


@pytest.mark.parametrize("kind", SETTINGS)
def test_an_interrupted_attack_resumes_bit_for_bit(
    tiny_model: Path, pictures: Path, runs: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """Stopped after step 3, whose state was not kept: the run goes on from step 2."""
    options = {"kind": kind, "steps": (0, 2, 5), "overrides": [*FAST, *SETTINGS[kind]]}
    out = stopped_then_resumed(tiny_model, pictures, tmp_path / "run", after=3, **options)
    assert_same_run(out, runs[kind])


def test_a_killed_attack_resumes_bit_for_bit(
    tiny_model: Path, pictures: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    """SIGKILL after step 3, by the process itself: nothing of it can tidy up."""
    script = (
        "import os, signal, sys; from pathlib import Path; from metaunlearn.attacking import attack\n"
        "def kill(label, done, total): done == 3 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "model, data, out, *overrides = sys.argv[1:]\n"
        "attack(model, Path(data), kind='lora', steps=(0, 2, 5), overrides=overrides, out=Path(out), progress=kill)"
    )
    out, overrides = tmp_path / "run", [*FAST, *SETTINGS["lora"]]
    run_and_kill(script, tiny_model, pictures, out, *overrides, log=out / "log.jsonl", lines=99)
    assert len(losses(out)) == 3
    attack(tiny_model, pictures, kind="lora", steps=(0, 2, 5), overrides=overrides, out=out, resume=True)
    assert_same_run(out, runs["lora"])


@pytest.mark.parametrize("kind", SETTINGS)
def test_the_callers_pipeline_stays_as_it_is(pictures: Path, tmp_path: Path, kind: str) -> None:
    pipeline = new_tiny_pipeline()
    parts = ("unet", "text_encoder", "vae")
    before = {part: {k: v.clone() for k, v in getattr(pipeline, part).state_dict().items()} for part in parts}
    words = len(pipeline.tokenizer)
    overrides = [*FAST, *SETTINGS[kind], "learning_rate=0.1", "optimizer=sgd"]
    attack(pipeline, pictures, kind=kind, steps=(1,), overrides=overrides, out=tmp_path / "run")
    for part in parts:
        after = getattr(pipeline, part).state_dict()
        assert all(torch.equal(after[name], tensor) for name, tensor in before[part].items()), part
    assert len(pipeline.tokenizer) == words


# --- What moves ------------------------------------------------------------------------------------------------------


def test_finetuning_with_the_text_encoder(runs: dict[str, Path], tiny_model: Path) -> None:
    run = runs["finetune"]
    moved = changed(run, tiny_model, UNET)
    assert moved
    assert all("attn2" in name for name in moved)
    assert len(changed(run, tiny_model, TEXT)) == len(load_file(tiny_model / TEXT))
    assert changed(run, tiny_model, VAE) == set()
    assert changed(run / "step-000000", tiny_model, TEXT) == set()


def test_only_targets_of_lora_change(runs: dict[str, Path], tiny_model: Path) -> None:
    run = runs["lora"]
    weights = load_file(tiny_model / UNET)
    targets = {n for n in weights if n.endswith(("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"))}
    assert changed(run, tiny_model, UNET) == targets
    assert changed(run, tiny_model, TEXT) == set()
    assert changed(run / "step-000000", tiny_model, UNET) == set()


def test_only_the_new_row_is_inverted(runs: dict[str, Path], tiny_model: Path) -> None:
    run = runs["textual-inversion"]
    before, after = bare(tiny_model / TEXT), bare(run / TEXT)
    (name,) = [key for key in before if key.endswith("token_embedding.weight")]
    old, new = before.pop(name), after.pop(name)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert new.shape == (len(old) + 1, old.shape[1])
    assert torch.equal(new[:-1], old)
    assert not torch.equal(new[-1], old[_id(tiny_model, "a")])
    first = bare(run / "step-000000" / TEXT)[name]
    assert torch.equal(first[-1], old[_id(tiny_model, "a")])
    for file in (UNET, VAE):
        assert changed(run, tiny_model, file) == set()


def _id(model: Path, word: str) -> int:
    tokenizer = load(model).pipeline.tokenizer
    return int(tokenizer.convert_tokens_to_ids(tokenizer.tokenize(word)[0]))


# --- The training loop -----------------------------------------------------------------------------------------------


def test_accumulated_batches_are_one_step_along_their_mean_gradient(tiny_model: Path, pictures: Path) -> None:
    """SGD: theta' = theta - lr * (g_1 + g_2 + g_3) / 3, the g_i of three batches drawn one after the other."""
    settings = AttackSettings(optimizer="sgd", learning_rate=0.1, batch_size=2, accumulation=3)
    kind = KINDS["finetune"].model_validate({**settings.model_dump(), "subset": "x"})
    task = _task(tiny_model, pictures)
    training = kind.begin(task)  # type: ignore[attr-defined]
    start = {name: p.detach().clone() for name, p in training.trained.items()}
    loop = Loop(training, kind.settings, seed=3)  # type: ignore[attr-defined]
    records: list[dict[str, float]] = []
    loop.run_to(1, None, records.append)

    model, read = task.model, task.data
    data = LatentSet.encode(model, read.images, read.texts)
    generator = step_generator(3, 0, "attack")
    leaves = {name: p.requires_grad_(name in start) for name, p in model.parameters().items()}
    found = [denoising_loss(model, leaves, data.draw(2, generator, stratified=False)) for _ in range(3)]
    gradients = torch.autograd.grad(sum(found), [leaves[name] for name in start])  # type: ignore[arg-type]
    for (name, p), gradient in zip(start.items(), gradients, strict=True):
        torch.testing.assert_close(training.trained[name].detach(), p - 0.1 * gradient / 3, rtol=0, atol=1e-6)
    assert records[0]["loss"] == pytest.approx(sum(loss.item() for loss in found) / 3, rel=1e-6)


def _task(model: Path, pictures: Path, out: Path = Path()) -> AttackTask:
    adapter = load(model)
    read = read_imagefolder(pictures, size=adapter.image_size)
    return AttackTask(model=adapter, pictures=read, seed=0, out=out, cache=out / "state")


def test_the_loss_of_dreambooth_is_the_instances_plus_the_weighted_prior(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    """With the same draws: L_DM on the instances under their one prompt + 0.5 L_DM on the prior's pictures."""
    settings = DreamBooth(class_prompt="a dog", instance_prompt="a new dog", prior_weight=0.5, prior_images=3)
    task = _task(tiny_model, pictures, tmp_path)
    found = settings.begin(task).loss(step_generator(0, 0)).item()

    generator, model = step_generator(0, 0), task.model
    prior = read_imagefolder(tmp_path / "prior", size=model.image_size)
    assert prior.texts == ["a dog"] * 3
    instances = LatentSet.encode(model, task.data.images, ["a new dog"] * 4).draw(8, generator, stratified=False)
    of_class = LatentSet.encode(model, prior.images, prior.texts).draw(8, generator, stratified=False)
    theta = model.parameters()
    expected = denoising_loss(model, theta, instances) + 0.5 * denoising_loss(model, theta, of_class)
    assert found == pytest.approx(expected.item(), rel=1e-5)


def test_the_prior_is_drawn_by_the_attacked_model_once(runs: dict[str, Path], tiny_model: Path) -> None:
    prior = read_imagefolder(runs["dreambooth"] / "prior", size=TINY_SIZE)
    drawn = generate_images(load(tiny_model).pipeline, ["a dog"] * 3, [0, 1, 2], steps=3, guidance_scale=2.0)
    torch.testing.assert_close((prior.images + 1) / 2, to_uint8(drawn).float() / 255, atol=1.5 / 255, rtol=0)


# --- The text encoder, differentiably --------------------------------------------------------------------------------


def test_tokens_are_encoded_as_prompts_are(tiny_model: Path) -> None:
    model = load(tiny_model)
    prompts = ["a knife", "a very long prompt " * 30, ""]
    ids, (table,) = model.token_ids(prompts), model.token_tables
    wanted = model.encode_prompts(prompts).tokens
    assert torch.equal(model.encode_tokens(ids).tokens, wanted)
    assert torch.equal(model.encode_tokens(ids, looked_up=[table[ids[:, 0]]]).tokens, wanted)
    assert not torch.equal(model.encode_tokens(ids, looked_up=[2 * table[ids[:, 0]]]).tokens, wanted)
    psi = {name: p * 1.1 for name, p in model.text_parameters().items()}
    assert not torch.equal(model.encode_tokens(ids, psi).tokens, wanted)
    assert torch.equal(model.encode_tokens(ids).tokens, wanted)


# --- LoRA ------------------------------------------------------------------------------------------------------------


def test_the_merged_matrix_is_w_plus_alpha_over_r_b_a() -> None:
    """A convolution of 3 outputs: entry (o, i, y, x) gains 1.5 * sum_r B[o, r] A[r, i, y, x]."""
    generator = torch.Generator().manual_seed(0)
    theta = {
        "a.conv.weight": torch.randn(3, 2, 3, 3, generator=generator, dtype=torch.float64),
        "a.to_q.weight": torch.randn(4, 5, generator=generator, dtype=torch.float64),
        "a.to_q.bias": torch.randn(4, generator=generator, dtype=torch.float64),
        "xto_q.weight": torch.randn(4, 5, generator=generator, dtype=torch.float64),
    }
    factors = new_factors(theta, ("conv", "to_q"), 2, generator)
    assert sorted(factors) == ["a.conv.lora_A", "a.conv.lora_B", "a.to_q.lora_A", "a.to_q.lora_B"]
    assert all(torch.equal(p, theta[name]) for name, p in merged(theta, factors, 1.5).items())
    for name in ("a.conv.lora_B", "a.to_q.lora_B"):
        factors[name] = torch.randn(factors[name].shape, generator=generator, dtype=torch.float64)
    found = merged(theta, factors, 1.5)
    A, B = factors["a.conv.lora_A"], factors["a.conv.lora_B"]
    for o, i, y, x in ((0, 0, 0, 0), (2, 1, 2, 0), (1, 0, 1, 2)):
        gain = sum(B[o, r, 0, 0] * A[r, i, y, x] for r in range(2))
        torch.testing.assert_close(found["a.conv.weight"][o, i, y, x], theta["a.conv.weight"][o, i, y, x] + 1.5 * gain)
    delta = factors["a.to_q.lora_B"] @ factors["a.to_q.lora_A"]
    torch.testing.assert_close(found["a.to_q.weight"], theta["a.to_q.weight"] + 1.5 * delta)
    assert found["xto_q.weight"] is theta["xto_q.weight"]


def test_the_adapter_beside_the_merged_weights_is_the_same_attack(runs: dict[str, Path], tiny_model: Path) -> None:
    """diffusers and peft load it onto the attacked model; the output is that of the merged one (float32: 1e-5)."""
    pytest.importorskip("peft")
    run = runs["lora"]
    with_adapter = load(tiny_model)
    plain = _output(with_adapter.pipeline)
    with_adapter.pipeline.load_lora_weights(run, weight_name=lora.WEIGHTS_FILE, local_files_only=True)
    merged_output = _output(load(run).pipeline)
    torch.testing.assert_close(_output(with_adapter.pipeline), merged_output, rtol=1e-5, atol=1e-5)
    assert (plain - merged_output).abs().max() > 1e-3


def _output(pipeline: DiffusionPipeline) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x_t, cond = torch.randn(1, 4, 16, 16, generator=generator), torch.randn(1, 24, 16, generator=generator)
    with torch.no_grad():
        output: torch.Tensor = pipeline.unet(x_t, torch.tensor([500]), encoder_hidden_states=cond).sample
    return output


# --- Textual inversion -----------------------------------------------------------------------------------------------


def test_the_learnt_embedding_is_what_diffusers_loads(runs: dict[str, Path], tiny_model: Path) -> None:
    run = runs["textual-inversion"]
    inverted, loaded = load(run), load(tiny_model)
    assert inverted.token_ids(["a <new>"])[0, 0, 2] == len(loaded.pipeline.tokenizer)
    loaded.pipeline.load_textual_inversion(run / textual_inversion.WEIGHTS_FILE)
    prompts = ["a <new>", "a picture of <new>", "a knife"]
    assert torch.equal(loaded.encode_prompts(prompts).tokens, inverted.encode_prompts(prompts).tokens)


def test_its_gradient_is_the_one_of_the_table(tiny_model: Path, pictures: Path) -> None:
    """Reference: the whole table as a leaf of the text encoder; its gradient's row of the new token, float64."""
    task = _task(tiny_model, pictures)
    settings = TextualInversion(initial_token="a", templates=("a {}",), batch_size=2)
    model = task.model
    for module in (model.unet, model.pipeline.vae, model.pipeline.text_encoder):
        module.double()
    read = task.data
    task = AttackTask(model=model, pictures=_double(read), seed=0, out=task.out, cache=task.cache)
    training = settings.begin(task)
    row = training.trained["text_encoder"].requires_grad_()
    found = torch.autograd.grad(training.loss(step_generator(0, 0)), row)[0]

    generator = step_generator(0, 0)
    data = LatentSet.encode(model, task.data.images, [""] * 4)
    batch = data.draw(2, generator, stratified=False)
    said = model.token_ids(["a <concept>"] * 2)
    (name,) = [key for key in model.text_parameters() if key.endswith("token_embedding.weight")]
    psi = model.text_parameters()
    psi[name].requires_grad_()
    reference = denoising_loss(model, {}, batch._replace(cond=model.encode_tokens(said, psi)))
    expected = torch.autograd.grad(reference, psi[name])[0]
    torch.testing.assert_close(found, expected[-1], rtol=1e-9, atol=1e-12)
    assert found.abs().max() > 1e-6


def _double(pictures: ImageText) -> ImageText:
    return replace(pictures, images=pictures.images.double())


def test_its_learning_rate_is_scaled_by_the_pictures_of_a_step() -> None:
    """The published 5e-3 at an effective batch of 16 is 0.08."""
    assert TextualInversion().rate == pytest.approx(0.08)
    assert TextualInversion(batch_size=2, accumulation=3).rate == pytest.approx(0.03)
    assert TextualInversion(scale_learning_rate=False).rate == 5e-3


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "overrides", "says"),
    [
        ("lora", ["targets=to_q,to_z"], "'to_z'"),
        ("lora", ["rank=0"], "rank"),
        ("lora", ["rnk=2"], "Did you mean 'rank'"),
        ("lora", ["subset=x"], "has no setting 'subset'.*finetune, dreambooth have"),
        ("dreambooth", [], "class_prompt"),
        ("dreambooth", ["class_prompt=a dog", "subset=y"], "ubset"),
        ("textual-inversion", ["initial_token=incomprehensible"], "initial_token"),
        ("textual-inversion", ["token=knife</w>", "initial_token=a"], "already"),
        ("textual-inversion", ["templates=a knife"], "templates"),
        ("finetune", ["text_encoder=perhaps"], "text_encoder"),
    ],
)
def test_bad_settings_are_refused_before_any_work(
    tiny_model: Path, pictures: Path, tmp_path: Path, kind: str, overrides: list[str], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        attack(tiny_model, pictures, kind=kind, steps=(1,), overrides=overrides, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_wrong_inputs_are_refused(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match="'finetune' takes steps"):
        attack(tiny_model, pictures, strengths=(0.5,), out=out)
    with pytest.raises(UserError, match="needs a folder of pictures"):
        attack(tiny_model, out=out)
    with pytest.raises(UserError, match="needs no model"):
        attack(tiny_model, pictures, base=tiny_model, out=out)
    with pytest.raises(UserError, match="attack_prompts"):
        attack(tiny_model, kind="unlearndiffatk", out=out)
    assert not out.exists()


def test_a_recipes_table_of_an_unknown_kind_is_refused() -> None:
    recipe = RecipeFile(attack={"learning_rate": 1e-4}, attacks={"lorra": {"rank": 2}})
    with pytest.raises(UserError, match="Did you mean 'lora'"):
        configure("finetune", recipe)


@pytest.mark.parametrize("kind", ["lora", "dreambooth"])
@pytest.mark.parametrize("name", ["sd14", "sd21", "sdxl"])
def test_a_large_models_recipe_keeps_every_training_as_small_as_its_finetuning(name: str, kind: str) -> None:
    recipe = read_recipe(name)
    found, finetuning = configure(kind, recipe).kind, configure("finetune", recipe).kind
    assert found.batch_size == finetuning.batch_size == 2
    assert found.gradient_checkpointing == finetuning.gradient_checkpointing == (name == "sdxl")


def test_the_recipe_says_what_the_call_does_not() -> None:
    recipe = RecipeFile(attack={"learning_rate": 1e-4, "batch_size": 3}, attacks={"lora": {"rank": 7}})
    assert configure("finetune", recipe, ["batch_size=5"]).kind.batch_size == 5
    assert configure("finetune", recipe).kind.batch_size == 3
    found = configure("lora", recipe, ["targets=to_k,to_v"]).kind
    assert (found.rank, found.targets, found.batch_size) == (7, ("to_k", "to_v"), Lora().batch_size)


def _seeded_task(model: Path, pictures: Path, *, seed: int = 0) -> AttackTask:
    adapter = load(model)
    read = read_imagefolder(pictures, size=adapter.image_size)
    return AttackTask(model=adapter, pictures=read, seed=seed, out=Path(), cache=Path())


def test_the_loss_of_a_lora_is_l_dm_of_the_merged_model(tiny_model: Path, pictures: Path) -> None:
    """With the same draws, and timesteps that are drawn each by itself; alpha / r is 1.5."""
    task = _seeded_task(tiny_model, pictures)
    training = Lora(rank=2, alpha=3, batch_size=3).begin(task)
    for name, factor in training.trained.items():
        if name.endswith("lora_B"):
            factor.normal_(generator=step_generator(0, 0, "B"))
    found = training.loss(step_generator(0, 0))
    data = LatentSet.encode(task.model, task.data.images, task.data.texts)
    batch = data.draw(3, step_generator(0, 0), stratified=False)
    at = merged(task.model.parameters(), training.trained, 1.5)
    torch.testing.assert_close(found, denoising_loss(task.model, at, batch))


def test_without_alpha_a_lora_is_not_scaled() -> None:
    assert Lora(rank=4).scale == 1
    assert Lora(rank=4, alpha=2).scale == 0.5


def test_where_a_lora_starts_follows_from_the_seed(tiny_model: Path, pictures: Path) -> None:
    one, same, other = (Lora(rank=2).begin(_seeded_task(tiny_model, pictures, seed=seed)).trained for seed in (1, 1, 2))
    assert all(torch.equal(same[name], factor) for name, factor in one.items())
    assert not any(torch.equal(other[name], factor) for name, factor in one.items() if name.endswith("lora_A"))


def test_each_picture_comes_with_a_template_of_its_own_draw(tiny_model: Path, pictures: Path) -> None:
    """The pictures, their noise and their timesteps first, then a template for each."""
    task = _seeded_task(tiny_model, pictures)
    templates = ("a {}", "a picture of {}", "{}")
    training = TextualInversion(initial_token="a", templates=templates, batch_size=4).begin(task)
    found = training.loss(step_generator(0, 0))
    generator, model = step_generator(0, 0), task.model
    batch = LatentSet.encode(model, task.data.images, [""] * 4).draw(4, generator, stratified=False)
    said = [templates[i].format("<concept>") for i in torch.randint(3, (4,), generator=generator)]
    assert len(set(said)) > 1
    expected = denoising_loss(model, model.parameters(), batch._replace(cond=model.encode_prompts(said)))
    torch.testing.assert_close(found, expected)


def test_a_table_with_rows_to_spare_does_not_grow(tiny_model: Path, pictures: Path) -> None:
    """The new word takes the first row that no word of the tokenizer has, and no other is written."""
    task = _seeded_task(tiny_model, pictures)
    model, encoder = task.model, task.model.pipeline.text_encoder
    words = len(model.pipeline.tokenizer)
    encoder.resize_token_embeddings(words + 3, mean_resizing=False)
    before = model.token_tables[0].detach().clone()
    training = TextualInversion(initial_token="a").begin(task)
    training.trained["text_encoder"].fill_(7)
    training.write()
    (after,) = model.token_tables
    assert len(after) == len(before) == words + 3
    assert [row for row in range(words + 3) if not torch.equal(after[row], before[row])] == [words]
    assert (after[words] == 7).all()


def test_a_batch_of_moving_text_encoders_has_the_captions_of_its_own_pictures(tiny_model: Path) -> None:
    """Two pictures share one; timesteps are drawn each by itself."""
    model, texts = load(tiny_model), ["a knife", "a dog", "a knife", "a toy"]
    tuned = Tuned(model, "x", text_encoder=True)
    data = tuned.encode(ImageText(torch.zeros(4, 3, model.image_size, model.image_size), texts, []))
    batch = tuned.draw(data, 4, step_generator(0, 0))
    generator = step_generator(0, 0)
    rows = independent_rows(4, 4, generator)
    expected = data.latents.batch(rows, generator, stratified=False)
    assert torch.equal(batch.t, expected.t)
    torch.testing.assert_close(batch.cond.tokens, model.encode_prompts([texts[row] for row in rows]).tokens)
