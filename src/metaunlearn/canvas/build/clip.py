"""Stage 2, a CLIPModel. Its text tower conditions the denoiser (as in SD); as a whole it is the judge."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from metaunlearn.canvas import scenes
from metaunlearn.canvas.build import others
from metaunlearn.canvas.build.harder import place_harder, roughen
from metaunlearn.canvas.build.loop import LossFunction, run_stage
from metaunlearn.canvas.catalog import BACKGROUNDS, NAMES, STYLES, article, caption

WIDTH = 128
BATCH, OTHERS, HARDER = 56, 24, 32
"""Pictures of Canvas's objects, of other emoji, and harder ones of Canvas's objects, in a batch."""
TEMPLATES = ("{}", "{}", "a picture of {}", "an emoji of {}", "{}, an illustration", "a photo of {}", "a drawing of {}")


def new_clip(tokenizer: CLIPTokenizer, seed: int = 0) -> CLIPModel:
    """An untrained CLIPModel for 64 x 64 pictures and Canvas's tokens."""
    shared = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4, "projection_dim": WIDTH}
    text = CLIPTextConfig(
        **shared,
        vocab_size=len(tokenizer),
        num_hidden_layers=3,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(**shared, num_hidden_layers=4, image_size=scenes.IMAGE_SIZE, patch_size=8)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def _pick(options: tuple[str, ...], generator: torch.Generator) -> str:
    return options[int(torch.randint(len(options), (1,), generator=generator))]


def _agrees(said: Tensor, shown: Tensor) -> Tensor:
    """(texts, pictures): the text says nothing of this attribute (-1) or says what the picture shows."""
    return (said[:, None] == -1) | (said[:, None] == shown[None, :])


def contrastive_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """InfoNCE with several positives a row; ``logits`` and the boolean ``positive`` are (rows, columns)."""
    rows = positive.any(dim=1)
    matched = logits.masked_fill(~positive, -torch.inf)[rows].logsumexp(dim=1)
    return (logits[rows].logsumexp(dim=1) - matched).mean()


def train_clip(tokenizer: CLIPTokenizer, sprites: Tensor, folder: Path, *, steps: int) -> CLIPModel:
    """Both towers, on the artists' pictures. Of the other emoji (``sprites``) only style and background are told."""
    model = new_clip(tokenizer)
    loss = contrast(model, tokenizer, sprites, harder=0)
    run_stage("clip", model, loss, steps=steps, learning_rate=1e-3, folder=folder, weight_decay=0.05)
    return model.requires_grad_(False)


def sharpen_eyes(model: CLIPModel, tokenizer: CLIPTokenizer, sprites: Tensor, folder: Path, *, steps: int) -> CLIPModel:
    """The vision tower alone, on harder pictures too; the text tower stays, and with it what the denoiser reads."""
    model.vision_model.requires_grad_(True)
    model.visual_projection.requires_grad_(True)
    loss = contrast(model, tokenizer, sprites, harder=HARDER)
    run_stage("eyes", model, loss, steps=steps, learning_rate=3e-4, folder=folder, weight_decay=0.05)
    return model.requires_grad_(False)


def contrast(model: CLIPModel, tokenizer: CLIPTokenizer, sprites: Tensor, *, harder: int) -> LossFunction:
    """Pictures against all object names, all style names, all backgrounds, and each other's full captions.

    Of the ``harder`` pictures in a batch only the object is asked: their colours are not their style's.
    """

    def loss(step: int, generator: torch.Generator) -> Tensor:
        batch, other = scenes.draw(scenes.all_pairs(), BATCH, generator), others.draw(sprites, OTHERS, generator)
        hard = [scenes.draw(scenes.all_pairs(), harder, generator, place_harder)] if harder else []
        said = torch.stack([batch.objects, batch.styles, batch.backgrounds])
        said[1:] = said[1:].masked_fill(torch.rand(2, BATCH, generator=generator) < 0.4, -1)
        texts = [
            _pick(TEMPLATES, generator).format(
                caption(NAMES[o], STYLES[s] if s >= 0 else None, list(BACKGROUNDS)[b] if b >= 0 else None)
            )
            for o, s, b in said.T.tolist()
        ]
        texts += [_pick(TEMPLATES, generator).format(article(name)) for name in NAMES]
        texts += [
            _pick((f"{s} style", f"a picture in {s} style", f"{s}", f"an emoji in {s} style"), generator)
            for s in STYLES
        ]
        texts += [_pick((f"a {b} background", f"a picture on a {b} background"), generator) for b in BACKGROUNDS]
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        output = model(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            pixel_values=roughen(torch.cat([part.images for part in (batch, other, *hard)]), generator),
        )
        captions, objects, style_names, backdrops = output.logits_per_image.split(
            [BATCH, len(NAMES), len(STYLES), len(BACKGROUNDS)], dim=1
        )
        captions, named = captions[:BATCH], torch.cat([objects[:BATCH], objects[BATCH + OTHERS :]])
        style_names, backdrops = style_names[: BATCH + OTHERS], backdrops[: BATCH + OTHERS]
        shown = (batch.objects, batch.styles, batch.backgrounds)
        positive = torch.stack([_agrees(a, b) for a, b in zip(said, shown, strict=True)]).all(dim=0).T
        return (
            0.5 * (contrastive_loss(captions, positive) + contrastive_loss(captions.T, positive.T))
            + F.cross_entropy(named, torch.cat([part.objects for part in (batch, *hard)]))
            + F.cross_entropy(style_names, torch.cat([batch.styles, other.styles]))
            + 0.5 * F.cross_entropy(backdrops, torch.cat([batch.backgrounds, other.backgrounds]))
        )

    return loss
