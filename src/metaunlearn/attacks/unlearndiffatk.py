"""UnlearnDiffAtk (Zhang et al., ECCV 2024): a few words before a prompt that make the erased model draw the concept.

The words are points of the simplex over the vocabulary; they descend the denoising loss of a picture that the model
before the erasing made for the prompt. Facts from the authors' code (``OPTML-Group/Diffusion-MU-Attack``).

Of several text encoders (XL) all are told the same words, so one P is optimised through them all.

Shapes: K words, V tokens in the vocabulary, T text tokens, D a text encoder's width, (1, C, h, w) a latent.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from metaunlearn.attacks.simplex import project_rows, sample_words
from metaunlearn.checkpoint import step_generator
from metaunlearn.conditioning import Conditioning
from metaunlearn.diffusion import Batch, denoising_loss
from metaunlearn.draws import Draw
from metaunlearn.errors import UserError
from metaunlearn.generation import default_sampling, generate_images
from metaunlearn.models import rebuilt
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.models.sampling_steps import check_sampling_steps
from metaunlearn.models.trained_schedule import lost_by, trained_with
from metaunlearn.settings import Settings


class UnlearnDiffAtk(Settings):
    """Defaults are the authors' (for nudity; they use 3 words for styles and objects)."""

    prefix_tokens: int = Field(default=5, gt=0)
    """K, words that are put before the prompt."""
    learning_rate: float = Field(default=0.01, gt=0)
    """Of Adam on the K x V simplex."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Of Adam; added to the gradient."""
    first_timestep: int = Field(default=10, ge=0)
    """The attack starts here and ascends ..."""
    timestep_stride: int = Field(default=20, gt=0)
    """... in strides of this, to the end of the schedule: 10, 30, ..., 990."""
    steps_per_timestep: int = Field(default=40, gt=0)
    """Gradient steps between two pictures."""
    longest_prompt: int = Field(default=60, gt=0)
    """Prompts of more tokens are skipped, as are those that leave no room for the K words."""
    sampler: Literal["own", "lms"] = "own"
    """Of the pictures that are tested: the pipeline's own, or the authors' linear multistep sampler."""
    sampling_steps: int | None = Field(default=None, gt=0)
    """Of the pictures that are tested; without it as many as the pipeline takes (the authors: 50)."""


@dataclass(frozen=True)
class SuccessTest:
    """When an attack has succeeded (:mod:`~metaunlearn.attacks.success` has the judge's)."""

    sees: Callable[[Tensor], bool]
    """Whether a picture, (1, 3, H, W) in [0, 1], shows the concept."""
    protocol: Mapping[str, Any]
    """How that is decided; stands beside every figure."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What was tested after the gradient steps at one timestep (``None``: the prompt itself, before any)."""

    timestep: int | None
    text: str
    """What the model was asked for."""
    success: bool
    loss: float | None
    """Mean over this timestep's gradient steps."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The attack on one prompt."""

    attempts: list[Attempt]
    picture: Tensor
    """The last picture tested, (1, 3, H, W) in [0, 1]."""

    @property
    def before(self) -> bool:
        """Whether the prompt alone was enough."""
        return self.attempts[0].success

    @property
    def success(self) -> bool:
        """Whether the prompt or the attack was."""
        return self.attempts[-1].success


class PromptAttack:
    """Attacks prompts of one model, one at a time."""

    def __init__(self, model: TextToImageModel, settings: UnlearnDiffAtk, success: SuccessTest) -> None:
        self.model, self.settings, self.success = model, settings, success
        self.pipeline = pipeline_for_tests(model.pipeline, settings.sampler)
        self.sampling_steps = settings.sampling_steps or default_sampling(model.pipeline).steps
        check_sampling_steps(model.pipeline, self.sampling_steps)
        if settings.first_timestep >= model.schedule.timesteps:
            raise UserError(
                f"the attack has no timestep to attack at: first_timestep is {settings.first_timestep} (--set "
                f"first_timestep=...), and the model has 0 to {model.schedule.timesteps - 1}."
            )

    def skips(self, text: str) -> bool:
        """Whether ``text`` has more tokens than the attack takes, or than leave room for its K words."""
        room = self.model.pipeline.tokenizer.model_max_length - 2 - self.settings.prefix_tokens
        return len(self._words(text)) > min(self.settings.longest_prompt, room)

    def run(self, draw: Draw, z_0: Tensor, *, seed: int, index: int, on_attempt: Callable[[Attempt], None]) -> Outcome:
        """Attack ``draw`` with the target latent ``z_0`` (1, C, h, w); every draw follows from seed and ``index``."""
        picture, shows = self._test(draw, draw.text)
        attempts = [Attempt(timestep=None, text=draw.text, success=shows, loss=None)]
        on_attempt(attempts[0])
        ids = self.model.token_ids([draw.text])
        vocabulary = min(len(table) for table in self.model.token_tables)
        P = torch.full((self.settings.prefix_tokens, vocabulary), 1.0, device=ids.device)
        P = (P / P.shape[1]).requires_grad_()
        optimizer = torch.optim.Adam([P], lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay)
        timesteps = range(self.settings.first_timestep, self.model.schedule.timesteps, self.settings.timestep_stride)
        for number, timestep in enumerate(timesteps):
            if shows:
                break
            total = 0.0
            for step in range(self.settings.steps_per_timestep):
                generator = step_generator(seed, number * self.settings.steps_per_timestep + step, f"words {index}")
                total += self._descend(P, optimizer, ids, z_0, timestep, generator)
            text = self.decode(P.argmax(dim=1).tolist(), draw.text)
            picture, shows = self._test(draw, text)
            mean = total / self.settings.steps_per_timestep
            attempts.append(Attempt(timestep=timestep, text=text, success=shows, loss=mean))
            on_attempt(attempts[-1])
        return Outcome(attempts=attempts, picture=picture)

    def _descend(
        self,
        P: Tensor,
        optimizer: torch.optim.Optimizer,
        ids: Tensor,
        z_0: Tensor,
        timestep: int,
        generator: torch.Generator,
    ) -> float:
        """One Adam step of P along the loss at words drawn from it, back onto the simplex; returns the loss."""
        loss = self.loss(P, ids, z_0, timestep, generator)
        optimizer.zero_grad(set_to_none=True)
        (P.grad,) = torch.autograd.grad(loss, [P])
        optimizer.step()
        with torch.no_grad():
            P.copy_(project_rows(P))
        return loss.item()

    def loss(self, P: Tensor, ids: Tensor, z_0: Tensor, timestep: int, generator: torch.Generator) -> Tensor:
        """|| eps - eps_theta(z_t, c') ||^2 per latent value, c' the prompt with words drawn from P before it."""
        words = sample_words(P, generator)
        eps = torch.randn(z_0.shape, generator=generator).to(z_0)
        t = torch.full((len(z_0),), timestep, device=z_0.device)
        # {}: the module's own parameters, which are constants here.
        return denoising_loss(self.model, {}, Batch(x_0=z_0, cond=self._encode(words, ids), eps=eps, t=t))

    def _encode(self, words: Tensor, ids: Tensor) -> Conditioning:
        """The prompt ``ids`` (1, encoders, T) with ``words`` (K, V), one-hot, after the start token: one row."""
        count, vocabulary = words.shape
        drawn = words.detach().argmax(dim=1).expand(*ids.shape[:2], count)
        with_words = torch.cat([ids[..., :1], drawn, ids[..., 1 : ids.shape[-1] - count]], dim=-1)
        looked_up = []
        for heard, table in zip(with_words.unbind(dim=1), self.model.token_tables, strict=True):
            start, rest = table[heard[:, :1]], table[heard[:, 1 + count :]]
            looked_up.append(torch.cat([start, (words @ table[:vocabulary])[None], rest], dim=1))
        return self.model.encode_tokens(with_words, looked_up=looked_up)

    def decode(self, words: list[int], text: str) -> str:
        """The text that says ``words`` and then ``text``; a pipeline may tokenise it otherwise."""
        tokenizer = self.model.pipeline.tokenizer
        ids = [word for word in words + self._words(text) if word != tokenizer.eos_token_id]
        return str(tokenizer.decode(ids)).strip()

    def _words(self, text: str) -> list[int]:
        ids: list[int] = self.model.pipeline.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids

    def _test(self, draw: Draw, text: str) -> tuple[Tensor, bool]:
        """The picture of ``text`` with the seed and guidance of ``draw``, and whether it shows the concept."""
        picture = generate_images(
            self.pipeline,
            [text],
            [draw.seed],
            steps=self.sampling_steps,
            guidance_scale=draw.guidance_scale,
        )
        return picture, bool(self.success.sees(picture))


def check_one_vocabulary(model: TextToImageModel) -> None:
    """UserError unless a token id is the same word to all of the model's text encoders."""
    first, *others = (getattr(model.pipeline, name).get_vocab() for name in model.tokenizers)
    if any(other != first for other in others):
        raise UserError(
            "UnlearnDiffAtk (kind=, --kind unlearndiffatk) looks for words that all text encoders are told alike, and "
            f"MODEL's tokenizers ({', '.join(model.tokenizers)}) have different vocabularies. Attack it with "
            "textual-inversion, which learns a word for each, or its denoiser with finetune, lora or dreambooth."
        )


def pipeline_for_tests(pipeline: Any, sampler: str) -> Any:
    """The pipeline that draws the pictures to be tested."""
    if sampler == "own":
        return pipeline
    if find_spec("scipy") is None:
        raise UserError(
            "the sampler lms (sampler, --set sampler=lms) needs the package scipy: pip install 'metaunlearn[lms]'; "
            "or draw with the pipeline's own (--set sampler=own)."
        )
    from diffusers import LMSDiscreteScheduler

    # Only what was there in training: how another sampler was set means nothing to this one.
    trained = {key: value for key, value in trained_with(pipeline.scheduler.config).items() if value is not None}
    # diffusers' pipelines warn of any other offset; evenly spaced timesteps, this sampler's default, have none.
    known = inspect.signature(LMSDiscreteScheduler).parameters
    scheduler = LMSDiscreteScheduler(**{key: trained[key] for key in trained if key in known}, steps_offset=1)
    if lost := lost_by(scheduler, trained):
        raise UserError(
            f"MODEL was trained with {', '.join(lost)}, which the sampler lms (sampler, --set sampler=lms) does not "
            "have: it would draw with other noise levels. Draw with the pipeline's own (--set sampler=own)."
        )
    return rebuilt(pipeline, scheduler=scheduler)
