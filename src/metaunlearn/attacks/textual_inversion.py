"""Textual inversion (Gal et al., ICLR 2023): a new word is learnt that makes the erased model draw the concept.

Against erased models: "Circumventing Concept Erasure" (Pham et al., ICLR 2024). Only the new word's embedding is
trained, a row of each text encoder's table; every other number of the model stays bitwise as it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from metaunlearn.attacks.interface import AttackTask, Training
from metaunlearn.checkpoint import save_tensors
from metaunlearn.config import AttackSettings
from metaunlearn.data.concepts import TEMPLATES
from metaunlearn.data.latents import LatentSet
from metaunlearn.diffusion import denoising_loss, part
from metaunlearn.errors import UserError
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.overrides import as_list

WEIGHTS_FILE = "learned_embeds.safetensors"
"""The name that diffusers' ``load_textual_inversion`` looks for."""
ROWS_OF_XL = ("clip_l", "clip_g")
"""What A1111, ComfyUI and diffusers' examples call the rows of XL's two text encoders."""


class TextualInversion(AttackSettings):
    """The embedding of ``token`` moves along L_DM on the attacker's pictures, each under a template with the token."""

    copies: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")

    learning_rate: float = Field(default=5e-3, gt=0)
    """Of the attacker's optimiser, for an effective batch of one picture where ``scale_learning_rate`` is on."""
    scale_learning_rate: bool = True
    """Multiply the learning rate by the pictures of a step, batch_size times accumulation."""
    batch_size: int = Field(default=4, gt=0)
    """Pictures in one forward pass."""
    accumulation: int = Field(default=4, gt=0)
    """Batches a step, whose gradients are averaged."""
    token: str = Field(default="<concept>", min_length=1)
    """The new word; prompts of the attacked model use it."""
    initial_token: str = "art"
    """A word of the model, of one token, where the new one starts."""
    templates: tuple[str, ...] = Field(default=TEMPLATES, min_length=1)
    """Captions of the attacker's pictures, {} for the token; ``--set templates=A|B``."""

    @field_validator("templates", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return as_list(value, "|")

    @field_validator("templates")
    @classmethod
    def _has_a_place(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(template.count("{}") == 1 for template in value):
            raise ValueError("each template needs one {} for the token")
        return value

    @property
    def caption(self) -> str:
        """The templates are all that the model is told; captions are not read."""
        return ""

    @property
    def rate(self) -> float:
        """The learning rate, scaled."""
        return self.learning_rate * (self.batch_size * self.accumulation if self.scale_learning_rate else 1)

    def check(self, model: TextToImageModel) -> None:
        """The token must be new, and the word that it starts from a single token, to each of the model's tokenizers."""
        for name in model.tokenizers:
            self._check_words(getattr(model.pipeline, name))

    def _check_words(self, tokenizer: Any) -> None:
        if self.token in tokenizer.get_vocab():
            raise UserError(f"the model has a token {self.token!r} already; choose another (token, --set token=...).")
        pieces = tokenizer.tokenize(self.initial_token)
        if len(pieces) != 1 or tokenizer.convert_tokens_to_ids(pieces[0]) == tokenizer.unk_token_id:
            raise UserError(
                f"the word {self.initial_token!r} is {len(pieces)} tokens of this model ({' '.join(pieces)}), or none "
                "that it knows; choose a word of one token (initial_token, --set initial_token=...)."
            )

    def begin(self, task: AttackTask) -> Training:
        """Give the model the new token, encode the pictures, and take the token's embeddings."""
        model = task.model
        pairs = [
            (getattr(model.pipeline, tokenizer), getattr(model.pipeline, encoder))
            for tokenizer, encoder in zip(model.tokenizers, model.text_encoders, strict=True)
        ]
        new_ids = [add_token(tokenizer, encoder, self.token, self.initial_token) for tokenizer, encoder in pairs]
        tables = model.token_tables
        rows = [table[new_id].detach().clone() for table, new_id in zip(tables, new_ids, strict=True)]
        ids = model.token_ids([template.format(self.token) for template in self.templates])
        data = LatentSet.encode(model, task.data.images, [""] * len(task.data.texts))

        def loss(generator: torch.Generator) -> Tensor:
            own = task.processes.own(self.batch_size)
            batch = part(data.draw(self.batch_size, generator, stratified=False), own.start, own.stop)
            said = ids[torch.randint(len(ids), (self.batch_size,), generator=generator)][own]
            looked_up = [
                torch.where((heard == new_id)[..., None], row, table[heard])
                for heard, new_id, row, table in zip(said.unbind(dim=1), new_ids, rows, tables, strict=True)
            ]
            return denoising_loss(model, {}, batch._replace(cond=model.encode_tokens(said, looked_up=looked_up)))

        def write() -> None:
            with torch.no_grad():
                for table, new_id, row in zip(tables, new_ids, rows, strict=True):
                    table[new_id] = row

        def beside(folder: Path) -> None:
            named = {self.token: rows[0]}
            if len(rows) > 1:
                named = {name: row[None] for name, row in zip(ROWS_OF_XL, rows, strict=True)}
            save_tensors(folder / WEIGHTS_FILE, named)

        return Training(
            trained=dict(zip(model.text_encoders, rows, strict=True)),
            loss=loss,
            write=write,
            changed=(*model.text_encoders, *model.tokenizers),
            beside=beside,
        )


def add_token(tokenizer: Any, encoder: Any, token: str, like: str) -> int:
    """Give a tokenizer and its text encoder a new ``token`` that means what ``like`` means; return its id."""
    old_id = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(like)[0])
    tokenizer.add_tokens([token])
    new_id: int = tokenizer.convert_tokens_to_ids(token)
    old = encoder.get_input_embeddings()
    rows = max(len(old.weight), new_id + 1)  # Some tables have rows to spare.
    # Not resize_token_embeddings, which draws the new rows from torch's global generator.
    table = nn.Embedding(rows, old.embedding_dim, padding_idx=old.padding_idx, _weight=_grown(old.weight, rows))
    encoder.set_input_embeddings(table.requires_grad_(False))
    encoder.config.vocab_size = rows
    _read_pooled_at_the_end(encoder, tokenizer.eos_token_id)
    with torch.no_grad():
        table.weight[new_id] = table.weight[old_id]
    return new_id


def _read_pooled_at_the_end(encoder: Any, end: int) -> None:
    """Let the pooled embedding, of which XL's denoiser is told, be that of the token ``end``, the last of a prompt.

    Older files, XL's own among them, leave ``eos_token_id`` at 2. transformers then reads it at the largest id of the
    prompt, which was ``end`` until there was a new token.
    """
    encoder.config.eos_token_id = end
    getattr(encoder, "text_model", encoder).eos_token_id = end


def _grown(table: Tensor, rows: int) -> Tensor:
    grown = table.new_zeros(rows, table.shape[1])
    grown[: len(table)] = table.detach()
    return grown
