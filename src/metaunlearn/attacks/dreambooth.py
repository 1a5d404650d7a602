"""DreamBooth (Ruiz et al., CVPR 2023): finetuning on a few pictures beside the model's own pictures of their class."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from metaunlearn.attacks.finetune import Finetune
from metaunlearn.attacks.interface import AttackTask, Training
from metaunlearn.attacks.tuned import Tuned
from metaunlearn.data.imagefolder import METADATA, ImageText, read_imagefolder
from metaunlearn.data.prompts import Prompt
from metaunlearn.diffusion import joined, squared_errors
from metaunlearn.draws import DrawSettings, draw_into, draws_for
from metaunlearn.errors import UserError
from metaunlearn.generation import default_sampling
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.runs import labelled


class DreamBooth(Finetune):
    """L_DM on the attacker's pictures + ``prior_weight`` L_DM on pictures that the attacked model made of its class."""

    copies: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")

    learning_rate: float = Field(default=5e-6, gt=0)
    """Of the attacker's optimiser."""
    instance_prompt: str | None = None
    """The caption of all of the attacker's pictures, such as "a photo of a sks toy"; without it they keep their own."""
    class_prompt: str = ""
    """What the class is called, such as "a photo of a toy"; the attacked model draws the prior's pictures for it."""
    prior_weight: float = Field(default=1.0, ge=0)
    """Weight of the prior's loss."""
    prior_images: int = Field(default=100, gt=0)
    """Pictures of the class that the attacked model makes of itself, before it is trained."""

    picture_batch: int | None = Field(default=None, gt=0)
    """Of the prior's, at once; None: 32, fewer of more than 256 x 256 pixels."""

    @property
    def caption(self) -> str | None:
        """With a prompt for all of them, the attacker's pictures need no captions."""
        return self.instance_prompt

    def check(self, model: TextToImageModel) -> None:
        """A class is needed, and a subset that ``model`` has."""
        super().check(model)
        if not self.class_prompt.strip():
            raise UserError(
                "dreambooth needs the class that its prior keeps (class_prompt, --set class_prompt='a photo of a toy')."
            )

    def begin(self, task: AttackTask) -> Training:
        """Make the prior's pictures, encode both sets, and take the parameters."""
        tuned = Tuned(task.model, self.subset, text_encoder=self.text_encoder, processes=task.processes)
        own = task.data
        if self.instance_prompt is not None:
            own = replace(own, texts=[self.instance_prompt] * len(own.texts))
        instances = tuned.encode(own)
        prior = tuned.encode(self._prior_pictures(task))

        def loss(generator: torch.Generator) -> Tensor:
            batches = [tuned.draw(data, self.batch_size, generator) for data in (instances, prior)]
            errors = squared_errors(task.model, tuned.theta, joined(*batches))
            of_instances, of_prior = errors.chunk(2)
            return of_instances.mean() + self.prior_weight * of_prior.mean()

        return Training(trained=tuned.trained, loss=loss, write=tuned.write, changed=tuned.changed)

    def _prior_pictures(self, task: AttackTask) -> ImageText:
        """Pictures of the class, kept in the run's folder ``prior`` and read back from there."""
        folder = task.out / "prior"
        if not task.processes.on_main((folder / METADATA).exists):
            draws = draws_for(
                [Prompt(self.class_prompt)],
                images=self.prior_images,
                seed=task.seed,
                guidance_scale=default_sampling(task.model.pipeline).guidance_scale,
            )
            progress = task.progress
            draw_into(
                folder,
                task.model.pipeline,
                draws,
                finished=task.cache / "prior",
                settings=DrawSettings(picture_batch=self.picture_batch),
                progress=labelled(progress, "making the prior's pictures"),
                processes=task.processes,
            )
        return read_imagefolder(folder, size=task.model.image_size)
