"""Attacks on XL's two text encoders and their words, on a pipeline that is made as XL's own files are."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from transformers import CLIPTokenizer

from attack_fixtures import (
    FAST,
    NEVER,
    ONE_STEP,
    TEXT,
    TEXT_2,
    UNET,
    WANTS_TOKENS,
    assert_same_run,
    bare,
    changed,
    stopped_then_resumed,
    write_pictures,
)
from metaunlearn.attacking import attack
from metaunlearn.attacking_prompts import attack_prompts
from metaunlearn.attacks import textual_inversion
from metaunlearn.attacks.unlearndiffatk import PromptAttack, UnlearnDiffAtk
from metaunlearn.checkpoint import load_tensors
from metaunlearn.conditioning import Conditioning
from metaunlearn.data.prompts import Prompt
from metaunlearn.diffusion import Batch, denoising_loss
from metaunlearn.errors import UserError
from metaunlearn.generation import Sampling, write_sampling
from metaunlearn.models import load, load_pipeline
from metaunlearn.parameters import Params
from tiny_models import new_sdxl


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As XL's own files are: the tokenizers differ in their padding, ``eos_token_id`` is 2 in both encoders."""
    folder = tmp_path_factory.mktemp("models") / "xl"
    xl_as_published().save_pretrained(folder, safe_serialization=True)
    write_sampling(folder, Sampling(steps=3, guidance_scale=2.0))
    return folder


def xl_as_published() -> StableDiffusionXLPipeline:
    pipeline = new_sdxl()
    pipeline.tokenizer_2 = copy.deepcopy(pipeline.tokenizer)
    pipeline.tokenizer_2.pad_token = "!"
    for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
        encoder.config.eos_token_id = 2
        getattr(encoder, "text_model", encoder).eos_token_id = 2
    return pipeline


def test_tokens_are_encoded_as_prompts_are(xl: Path) -> None:
    """Bitwise, and each encoder by its own tokens: they pad differently."""
    model = load(xl)
    prompts = ["a knife", "a very long prompt " * 30, ""]
    ids = model.token_ids(prompts)
    assert ids.shape == (3, 2, 16)
    assert not torch.equal(ids[:, 0], ids[:, 1])
    wanted = model.encode_prompts(prompts).tensors()
    rows = [table[ids[:, place]] for place, table in enumerate(model.token_tables)]
    for found in (model.encode_tokens(ids), model.encode_tokens(ids, looked_up=rows)):
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.tensors().items())
    assert sorted(wanted) == ["pooled", "time_ids", "tokens"]
    for place, moved in enumerate((("tokens",), ("pooled", "tokens"))):
        others = [2 * row if at == place else row for at, row in enumerate(rows)]
        found = model.encode_tokens(ids, looked_up=others).tensors()
        assert tuple(name for name in sorted(wanted) if not torch.equal(found[name], wanted[name])) == moved


def test_all_that_reaches_the_denoiser_is_trained(xl: Path, pictures: Path, tmp_path: Path) -> None:
    """Of the first encoder the second-last layer is read: neither its last one nor the final norm moves."""
    out = tmp_path / "run"
    attack(xl, pictures, steps=(1,), overrides=[*FAST, "text_encoder=true", "subset=x"], out=out)
    first, second = bare(xl / TEXT), bare(xl / TEXT_2)
    unread = {name for name in first if "encoder.layers.1." in name or "final_layer_norm" in name}
    assert len(unread) > 2
    assert changed(out, xl, TEXT) == first.keys() - unread
    assert changed(out, xl, TEXT_2) == second.keys()
    assert changed(out, xl, UNET)


def test_the_gradient_of_both_text_encoders(xl: Path) -> None:
    """By differences along one random direction of all of psi, float64: tokens and pooled embedding count."""
    model = load(xl)
    for part in ("unet", "text_encoder", "text_encoder_2"):
        getattr(model.pipeline, part).double()
    psi = model.text_parameters()
    generator = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn(2, 4, 16, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    ids, t = model.token_ids(["a knife", "a dog"]), torch.tensor([300, 700])

    def loss(at: Params) -> torch.Tensor:
        return denoising_loss(model, {}, Batch(x_0=x_0, cond=model.encode_tokens(ids, at), eps=eps, t=t))

    leaves = {name: p.clone().requires_grad_() for name, p in psi.items()}
    gradient = dict(zip(leaves, torch.autograd.grad(loss(leaves), list(leaves.values())), strict=True))
    for encoder in model.text_encoders:
        way = {
            name: torch.randn(p.shape, generator=generator, dtype=p.dtype) * name.startswith(f"{encoder}.")
            for name, p in psi.items()
        }
        ahead, behind = (loss({name: p + step * way[name] for name, p in psi.items()}) for step in (1e-6, -1e-6))
        slope = sum((gradient[name] * way[name]).sum() for name in psi)
        assert abs(float(slope)) > 1e-6
        assert float((ahead - behind) / 2e-6) == pytest.approx(float(slope), rel=1e-4)


@pytest.fixture(scope="module")
def inverted(xl: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of textual inversion."""
    out = tmp_path_factory.mktemp("inverted") / "run"
    overrides = [*FAST, *WANTS_TOKENS["textual-inversion"], "accumulation=2"]
    attack(xl, pictures, kind="textual-inversion", steps=(0, 2), overrides=overrides, out=out)
    return out


def test_a_row_of_each_encoder_is_inverted(xl: Path, inverted: Path) -> None:
    tokenizer = load(xl).pipeline.tokenizer
    like = tokenizer.convert_tokens_to_ids(tokenizer.tokenize("a")[0])
    for file in (TEXT, TEXT_2):
        before, after, first = (bare(run / file) for run in (xl, inverted, inverted / "step-000000"))
        (name,) = [key for key in before if key.endswith("token_embedding.weight")]
        assert torch.equal(after[name][:-1], before[name])
        assert torch.equal(first[name][-1], before[name][like])
        assert not torch.equal(after[name][-1], before[name][like])
        assert all(torch.equal(after[key], before[key]) for key in before.keys() - {name})
    assert changed(inverted, xl, UNET) == set()


def test_the_learnt_rows_are_what_diffusers_loads(xl: Path, inverted: Path) -> None:
    """As its documentation has it: clip_l to the first text encoder, clip_g to the second."""
    found, by_hand = load(inverted), load(xl)
    rows = load_tensors(inverted / textual_inversion.WEIGHTS_FILE)[0]
    assert {name: row.shape for name, row in rows.items()} == {"clip_l": (1, 8), "clip_g": (1, 16)}
    for name, (tokenizer, encoder) in {
        "clip_l": ("tokenizer", "text_encoder"),
        "clip_g": ("tokenizer_2", "text_encoder_2"),
    }.items():
        parts = {"tokenizer": getattr(by_hand.pipeline, tokenizer), "text_encoder": getattr(by_hand.pipeline, encoder)}
        by_hand.pipeline.load_textual_inversion(rows[name], token="<new>", **parts)
    prompts = ["a <new>", "a picture of <new>", "a knife"]
    assert torch.equal(by_hand.encode_prompts(prompts).tokens, found.encode_prompts(prompts).tokens)


def test_the_pooled_embedding_is_that_of_the_whole_prompt(xl: Path, inverted: Path) -> None:
    """Not of what comes before the new token, whose id is the largest; prompts without it are pooled as before."""
    model = load(inverted)
    city, forest, knife, before = (
        of.encode_prompts([prompt]).pooled
        for of, prompt in (
            (model, "a <new> in a city"), (model, "a <new> in a forest"), (model, "a knife"), (load(xl), "a knife"),
        )
    )  # fmt: skip
    assert not torch.equal(city, forest)
    assert torch.equal(knife, before)


def test_an_interrupted_inversion_resumes_bit_for_bit(xl: Path, pictures: Path, inverted: Path, tmp_path: Path) -> None:
    overrides = [*FAST, *WANTS_TOKENS["textual-inversion"], "accumulation=2", "checkpoint_every=1"]
    options = {"kind": "textual-inversion", "steps": (0, 2), "overrides": overrides}
    out = stopped_then_resumed(xl, pictures, tmp_path / "run", after=1, **options)
    assert_same_run(out, inverted)


def test_the_words_are_put_before_the_prompt_of_both_encoders(xl: Path) -> None:
    """Certain words (one-hot P): start, words, prompt, end and each tokenizer's own padding."""
    model = load(xl)
    run = PromptAttack(model, UnlearnDiffAtk(prefix_tokens=2), NEVER)
    ids, (dog, a) = model.token_ids(["a knife"]), model.token_ids(["dog a"])[0, 0, 1:3].tolist()
    words = torch.zeros(2, len(model.token_tables[0]))
    words[[0, 1], [dog, a]] = 1
    found, wanted = run._encode(words, ids).tensors(), model.encode_prompts(["dog a a knife"]).tensors()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor)


def test_the_words_feel_the_gradient_of_both_encoders(xl: Path) -> None:
    """d(sum of w * conditioning)/d(one-hot words) = sum over encoders of d/d(looked up words) tableᵀ, float64."""
    model = load(xl)
    for part in ("text_encoder", "text_encoder_2"):
        getattr(model.pipeline, part).double()
    run = PromptAttack(model, UnlearnDiffAtk(prefix_tokens=1), NEVER)
    ids = model.token_ids(["a knife"])
    words = torch.nn.functional.one_hot(ids[0, 0, 1:2], len(model.token_tables[0])).double().requires_grad_()
    (found,) = torch.autograd.grad(_weighed(run._encode(words, ids)), words)

    with_word = torch.cat([ids[..., :1], ids[:, :1, 1:2].expand(1, 2, 1), ids[..., 1:-1]], dim=-1)
    rows = [table[with_word[:, place]].clone().requires_grad_() for place, table in enumerate(model.token_tables)]
    slopes = torch.autograd.grad(_weighed(model.encode_tokens(with_word, looked_up=rows)), rows)
    parts = [table @ slope[0, 1] for table, slope in zip(model.token_tables, slopes, strict=True)]
    torch.testing.assert_close(found[0], parts[0] + parts[1], rtol=1e-9, atol=1e-12)
    assert min(part.abs().max() for part in parts) > 1e-6


def _weighed(cond: Conditioning) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    parts = [cond.tokens, cond.pooled]
    drawn = [
        part * torch.randn(part.shape, generator=generator, dtype=part.dtype) for part in parts if part is not None
    ]
    return torch.stack([part.sum() for part in drawn]).sum()


def test_words_need_one_vocabulary(xl: Path, tmp_path: Path) -> None:
    pipeline = load_pipeline(xl)
    vocabulary = pipeline.tokenizer.get_vocab()
    one, two = "a</w>", "dog</w>"
    swapped = {**vocabulary, one: vocabulary[two], two: vocabulary[one]}
    pipeline.tokenizer_2 = CLIPTokenizer(vocab=swapped, merges=[], model_max_length=16)
    with pytest.raises(UserError, match=r"different vocabularies.*textual-inversion"):
        attack_prompts(pipeline, [Prompt("a zebra")], NEVER, base=xl, overrides=ONE_STEP, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", WANTS_TOKENS)
def test_the_callers_xl_pipeline_stays_as_it_is(pictures: Path, tmp_path: Path, kind: str) -> None:
    pipeline = new_sdxl()
    parts = ("unet", "text_encoder", "text_encoder_2", "vae")
    before = {part: {k: v.clone() for k, v in getattr(pipeline, part).state_dict().items()} for part in parts}
    words = len(pipeline.tokenizer)
    overrides = [*FAST, *WANTS_TOKENS[kind], "learning_rate=0.1", "optimizer=sgd"]
    attack(pipeline, pictures, kind=kind, steps=(1,), overrides=overrides, out=tmp_path / "run")
    for part in parts:
        after = getattr(pipeline, part).state_dict()
        assert all(torch.equal(after[name], tensor) for name, tensor in before[part].items()), part
    assert [len(pipeline.tokenizer), len(pipeline.tokenizer_2)] == [words, words]
