"""UCE and RECE against direct least squares: each objective stacked row by row and handed to ``torch.linalg.lstsq``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from conftest import read_lines
from metaunlearn.config import EraseSettings
from metaunlearn.data.concepts import ConceptPrompts, prompts_for
from metaunlearn.erasing import erase
from metaunlearn.erasure.interface import ErasureTask
from metaunlearn.erasure.rece import Rece, surviving_embedding
from metaunlearn.erasure.registry import configure
from metaunlearn.erasure.uce import TokenChanges, Uce, closed_form_edit, concept_tokens, edited_matrices
from metaunlearn.errors import RunError, UserError
from metaunlearn.models import TextToImageModel, adapt, load
from metaunlearn.parameters import Params
from metaunlearn.recipe import read_recipe
from metaunlearn.settings import Settings, resolve
from tiny_models import with_unet

FAST = ("steps=2", "forget_images=4", "retain_images=4", "batch_size=4", "meta_gradient=first-order")
UNET = "unet/diffusion_pytorch_model.safetensors"
PROMPTS = ConceptPrompts(
    forget=(), related=(), unrelated=(), edited=("a zebra", "a plain striped horse"), kept=("a horse", "grass")
)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> TextToImageModel:
    return load(tiny_model)


@pytest.fixture(scope="module")
def task(model: TextToImageModel) -> ErasureTask:
    return task_of(model)


def task_of(model: TextToImageModel) -> ErasureTask:
    return ErasureTask(
        model=model, prompts=PROMPTS, settings=resolve(EraseSettings, read_recipe("small").erase), seed=0
    )


def method(name: str, *overrides: str) -> Settings:
    chosen = configure(name, read_recipe("small"), overrides).method
    assert isinstance(chosen, Settings)
    return chosen


def least_squares(W: Tensor, rows: list[tuple[float, Tensor, Tensor]], anchor: float) -> Tensor:
    """argmin over W' of Σ w ||W' c - v||^2 + anchor ||W' - W||^2 for rows (w, c, v), by QR of the stacked system."""
    left = [weight**0.5 * c for weight, c, _ in rows] + list(anchor**0.5 * torch.eye(W.shape[1], dtype=W.dtype))
    right = [weight**0.5 * v for weight, _, v in rows] + list(anchor**0.5 * W.T)
    return torch.linalg.lstsq(torch.stack(left), torch.stack(right)).solution.T


def encoded(model: TextToImageModel, text: str) -> tuple[Tensor, int]:
    """(T, D) in float64, as keys and values read it; how many tokens are no padding, by the tokenizer's own mask."""
    tokenizer = model.pipeline.tokenizer
    ids = tokenizer(text, padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
    projection = model.unet.encoder_hid_proj or torch.nn.Identity()
    with torch.no_grad():
        rows = projection(model.pipeline.text_encoder(ids.input_ids)[0][0]).double()
    return rows, int(ids.attention_mask.sum())


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert (actual.double() - expected).norm() <= tolerance * expected.norm()


def test_one_number_by_hand() -> None:
    """W = 2, c = 1 to be read as g = 3 (v* = 6), lambda = 1: (1 x 2 + 6 x 1) / (1 + 1) = 4; at weight 3 it is 5."""
    one = torch.ones(1, 1, dtype=torch.float64)
    for weight, expected in ((1.0, 4.0), (3.0, 5.0)):
        weights = torch.tensor([weight], dtype=torch.float64)
        assert closed_form_edit(2 * one, one, 6 * one, weights, 1.0, (1 + weight) * one).item() == expected


@pytest.mark.parametrize("biased", [False, True])
def test_the_edit_minimises_its_objective(biased: bool) -> None:
    """Random matrices in float64. With a bias b the layer answers W g + b, so W' alone has to reach W g + b - b."""
    g = torch.Generator().manual_seed(0)
    W = torch.randn(5, 7, generator=g, dtype=torch.float64)
    b = torch.randn(5, generator=g, dtype=torch.float64)
    c, to = torch.randn(2, 9, 7, generator=g, dtype=torch.float64)
    weights = torch.rand(9, generator=g, dtype=torch.float64) + 0.1
    theta = {"down.attn2.to_k.weight": W} | ({"down.attn2.to_k.bias": b} if biased else {})
    matrices, condition = edited_matrices(theta, TokenChanges(c, to, weights), 0.5)
    rows = [(w.item(), c_i, W @ g_i) for w, c_i, g_i in zip(weights, c, to, strict=True)]
    close(matrices["down.attn2.to_k.weight"], least_squares(W, rows, 0.5), 1e-12)
    gram = 0.5 * torch.eye(7, dtype=torch.float64) + sum(w * torch.outer(x, x) for w, x in zip(weights, c, strict=True))
    values = torch.linalg.eigvalsh(gram)
    assert condition == pytest.approx((values[-1] / values[0]).item(), rel=1e-9)


def uce_2023_rows(
    model: TextToImageModel, W: Tensor, prompts: ConceptPrompts = PROMPTS
) -> list[tuple[float, Tensor, Tensor]]:
    """From the concept's last token through the end, against as many tokens from the guide's start token on; kept: all
    tokens of '' and of two texts, p = max(0.1, 1/3)."""
    guide, rows = encoded(model, " ")[0], []
    for text in prompts.edited:
        c, count = encoded(model, text)
        rows += [(1.0, c_i, W @ g_i) for c_i, g_i in zip(c[count - 2 :], guide, strict=False)]
    for text in ("", *prompts.kept):
        rows += [(1 / (1 + len(prompts.kept)), r, W @ r) for r in encoded(model, text)[0]]
    return rows


def uce_2025_rows(
    model: TextToImageModel, W: Tensor, prompts: ConceptPrompts = PROMPTS
) -> list[tuple[float, Tensor, Tensor]]:
    """Last tokens only; the guide '' has none but its start token; p = 1 and nothing kept that was not named."""
    guide, rows = encoded(model, "")[0][0], []
    for text in prompts.edited:
        c, count = encoded(model, text)
        rows.append((1.0, c[count - 2], W @ guide))
    for text in prompts.kept:
        r, count = encoded(model, text)
        rows.append((1.0, r[count - 2], W @ r[count - 2]))
    return rows


def test_embeddings_that_are_not_finite_are_an_error_of_their_own(model: TextToImageModel) -> None:
    tokens = torch.full((1, model.text_width), torch.nan, dtype=torch.float64)
    changes = TokenChanges(tokens, tokens, torch.ones(1, dtype=torch.float64))
    with pytest.raises(RunError, match="embeddings are not finite"):
        edited_matrices(model.parameters(), changes, 0.5)


@pytest.mark.parametrize(("name", "rows"), [("uce-2023", uce_2023_rows), ("uce-2025", uce_2025_rows)])
def test_presets_edit_which_tokens_they_say(
    model: TextToImageModel, task: ErasureTask, name: str, rows: object
) -> None:
    """Every matrix against least squares; float32 storage leaves 6e-8."""
    chosen = method(name)
    assert isinstance(chosen, Uce)
    before, edit = model.parameters(), chosen.edit(task)
    edited = [key for key in before if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]
    assert len(edited) == edit.report["edited_matrices"] == 8
    for key in edited:
        expected = least_squares(before[key].double(), rows(model, before[key].double()), 0.5)  # type: ignore[operator]
        close(edit.theta[key], expected, 1e-6)
        assert not torch.equal(edit.theta[key], before[key])
    assert all(torch.equal(edit.theta[key], before[key]) for key in before if key not in edited)


@pytest.mark.parametrize(
    "options",
    [
        {"encoder_hid_dim_type": "text_proj", "encoder_hid_dim": 16, "cross_attention_dim": 24},
        {"cross_attention_dim": (16, 16)},
    ],
)
def test_edits_are_for_what_keys_and_values_read(options: dict[str, Any]) -> None:
    """Tokens behind the denoiser's own projection, here of 16 to 24 numbers, which stays; or one width by block."""
    model = adapt(with_unet(**options))
    assert model.text_width == 16
    test_presets_edit_which_tokens_they_say(model, task_of(model), "uce-2023", uce_2023_rows)
    test_rece_edits_what_survived_anchored_on_the_current_matrices(model, task_of(model))


@pytest.mark.parametrize(
    ("name", "kept", "rows"),
    [("uce-2023", 1, uce_2023_rows), ("uce-2025", 0, uce_2025_rows), ("rece", 1, None)],
)
def test_without_texts_to_retain_a_preset_keeps_what_it_published(
    model: TextToImageModel, tiny_model: Path, name: str, kept: int, rows: object
) -> None:
    """2023 the empty prompt, p = max(0.1, 1 / 1), and 2025 nothing; else everything that Canvas draws is kept."""
    result = erase(tiny_model, ["zebra"], method=name, meta=False, retain=["none"])
    assert result.summary["edit"]["kept_texts"] == kept
    usual = erase(tiny_model, ["zebra"], method=name, meta=False).summary["edit"]
    assert usual["kept_texts"] == kept + len(prompts_for(model.pipeline, ["zebra"]).kept) > 100
    if rows is not None:
        key = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight"
        W = model.parameters()[key].double()
        alone = rows(model, W, ConceptPrompts(forget=(), related=(), unrelated=(), edited=("zebra",)))  # type: ignore[operator]
        close(result.pipeline.unet.state_dict()[key], least_squares(W, alone, 0.5), 1e-6)


def test_a_second_stage_without_texts_to_retain_takes_given_pictures(tiny_model: Path, pictures: Path) -> None:
    options = {"method": "uce", "retain": ["none"], "overrides": FAST}
    with pytest.raises(UserError, match=r"no prompt for the retained pictures.*--retain-data"):
        erase(tiny_model, ["zebra"], **options)  # type: ignore[arg-type]
    result = erase(tiny_model, ["zebra"], retain_data=pictures, **options)  # type: ignore[arg-type]
    assert result.summary["edit"]["kept_texts"] == 1


@pytest.mark.parametrize("guide", ["a cat", "a picture of a plain grey cat"])
def test_concept_and_guide_are_cut_to_equal_lengths(model: TextToImageModel, guide: str) -> None:
    """Both from their own last token on, until the one whose last token stands further back is used up."""
    (c, count), (g, guide_count) = encoded(model, "a zebra"), encoded(model, guide)
    length = len(c) - max(count, guide_count) + 2
    found = concept_tokens(model, ["a zebra"], guide, last_only=False)
    torch.testing.assert_close(found.tokens, c[count - 2 :][:length])
    torch.testing.assert_close(found.read_as, g[guide_count - 2 :][:length])
    assert len(found.weights) == length


def test_uce_is_the_preset_of_2023() -> None:
    assert configure("uce", read_recipe("small")).name == "uce-2023"
    assert method("uce") == method("uce-2023") == Uce()


@pytest.mark.parametrize("mu", [0.1, 1e-3])
def test_surviving_embedding_minimises_its_objective(mu: float) -> None:
    """Σ ||W̃_i c' - W_i c||^2 + mu ||c'||^2 for three matrices of different heights, token by token."""
    g = torch.Generator().manual_seed(1)
    heights = (4, 6, 3)
    names = [f"block.{i}.attn2.to_v.weight" for i in range(3)]
    original: Params
    original, current = (
        {n: torch.randn(h, 5, generator=g, dtype=torch.float64) for n, h in zip(names, heights, strict=True)}
        for _ in range(2)
    )
    c = torch.randn(3, 5, generator=g, dtype=torch.float64)
    left = torch.cat([*(current[n] for n in names), mu**0.5 * torch.eye(5, dtype=torch.float64)])
    right = torch.cat([*(original[n] @ c.T for n in names), torch.zeros(5, 3, dtype=torch.float64)])
    close(surviving_embedding(original, current, c, mu), torch.linalg.lstsq(left, right).solution.T, 1e-12)


def test_rece_edits_what_survived_anchored_on_the_current_matrices(model: TextToImageModel, task: ErasureTask) -> None:
    """Two epochs by least squares throughout, starting from UCE's matrices in float32, as the edit does."""
    before, guide = model.parameters(), encoded(model, " ")[0]
    names = [key for key in before if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]
    current = Uce().edit(task).theta
    for _ in range(2):
        left = torch.cat(
            [*(current[n].double() for n in names), 0.1**0.5 * torch.eye(guide.shape[1], dtype=torch.float64)]
        )
        survived = []
        for text in PROMPTS.edited:
            c = encoded(model, text)[0]
            right = torch.cat(
                [*(before[n].double() @ c.T for n in names), torch.zeros(c.shape[1], len(c), dtype=torch.float64)]
            )
            survived += list(torch.linalg.lstsq(left, right).solution.T)
        edited = {}
        for n in names:
            W = current[n].double()
            rows = [(1.0, c, W @ to) for c, to in zip(survived, [*guide, *guide], strict=True)]
            rows += 2 * [(0.1, r, W @ r) for r in guide]
            edited[n] = least_squares(W, rows, 0.1).float()
        current = current | edited
    result = Rece(epochs=2).edit(task)
    for n in names:
        close(result.theta[n], current[n].double(), 1e-5)
    assert all(torch.equal(result.theta[n], before[n]) for n in before if n not in names)
    assert len(result.report["condition_numbers"]) == 3


def test_a_larger_erase_scale_brings_the_concept_closer_to_the_guide(
    model: TextToImageModel, task: ErasureTask
) -> None:
    key = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight"
    before = model.parameters()[key].double()
    c, count = encoded(model, PROMPTS.edited[0])
    wanted = before @ encoded(model, "")[0][0]
    distances = []
    for scale in ("0.01", "1", "100"):
        chosen = method("uce-2025", f"erase_scale={scale}")
        assert isinstance(chosen, Uce)
        distances.append((chosen.edit(task).theta[key].double() @ c[count - 2] - wanted).norm().item())
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.1 * distances[0]


def test_plain_run_needs_no_pictures_and_records_the_condition_number(tiny_model: Path, tmp_path: Path) -> None:
    result = erase(tiny_model, ["zebra|yak", "gnu"], method="uce", meta=False, out=tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["edit"] == result.summary["edit"]
    assert record["request"]["method"] == "uce-2023"
    assert record["request"]["method_settings"]["anchor_scale"] == 0.5
    (condition,) = record["edit"]["condition_numbers"]
    assert 1 < condition < 1e6
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text()) == {"step": 0, "edit": record["edit"]}
    assert not (tmp_path / "run" / "data").exists()
    before, after = load_file(tiny_model / UNET), load_file(tmp_path / "run" / UNET)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "attn2.to_k" in name or "attn2.to_v" in name}


def test_meta_is_a_second_stage_from_the_edit(tiny_model: Path, tmp_path: Path) -> None:
    """Only the first cross-attention layer is trained (Figure 6), so everything else is what the edit alone gives."""
    erase(tiny_model, ["zebra"], method="rece", meta=False, out=tmp_path / "plain")
    erase(tiny_model, ["zebra"], method="rece", overrides=[*FAST, "subset=first-xattn"], out=tmp_path / "meta")
    plain, meta = load_file(tmp_path / "plain" / UNET), load_file(tmp_path / "meta" / UNET)
    first = {name for name in plain if name.startswith("down_blocks.0.attentions.0.") and ".attn2." in name}
    assert {name for name in plain if not torch.equal(plain[name], meta[name])} == first
    start, *steps = read_lines(tmp_path / "meta" / "log.jsonl")
    assert (start["step"], len(start["edit"]["condition_numbers"])) == (0, 2)
    assert [line["step"] for line in steps] == [1, 2]
    assert all("loss_retain" in line and "loss_forget" not in line for line in steps)


def test_killed_second_stage_resumes_to_the_same_weights(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metaunlearn.meta.train import Algorithm1

    overrides = [*FAST, "steps=4", "checkpoint_every=2"]
    erase(tiny_model, ["zebra"], method="uce", overrides=overrides, out=tmp_path / "whole")
    step = Algorithm1.take_step

    def breaks(self: Algorithm1) -> object:
        if self.step == 3:
            raise RunError("killed")
        return step(self)

    monkeypatch.setattr(Algorithm1, "take_step", breaks)
    with pytest.raises(RunError, match="killed"):
        erase(tiny_model, ["zebra"], method="uce", overrides=overrides, out=tmp_path / "cut")
    monkeypatch.undo()
    erase(tiny_model, ["zebra"], method="uce", overrides=overrides, out=tmp_path / "cut", resume=True)
    whole, cut = load_file(tmp_path / "whole" / UNET), load_file(tmp_path / "cut" / UNET)
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert (tmp_path / "whole" / "log.jsonl").read_text() == (tmp_path / "cut" / "log.jsonl").read_text()


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("uce", "anchor_scale=0", "anchor_scale"),
        ("uce", "erase_scale=-1", "erase_scale"),
        ("uce", "tokens=first", "tokens"),
        ("uce", "mu=0.1", r"unknown key 'mu'.*anchor_scale"),
        ("rece", "epochs=0", "epochs"),
        ("rece", "mu=0", "mu"),
        ("uce", "subset=xattn", "Did you mean"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(
    tiny_model: Path, tmp_path: Path, name: str, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        erase(tiny_model, ["zebra"], method=name, overrides=[override], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_cross_attention_is_refused() -> None:
    with pytest.raises(UserError, match=r"attn2\.to_k.*--method"):
        edited_matrices({"conv_in.weight": torch.ones(1)}, TokenChanges(*torch.ones(3, 1, 1)), 0.5)
