"""The paper's data sets as recipes: which prompts, how many pictures (Appendix E.1).

Prompts of its harmful sets are never shipped: they come from a file of the user's. The paper does not say how many
pictures, which seeds or which guidance: 30 a set are the official demo's, guidance is the generator's own default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from metaunlearn.data.concepts import EVERYDAY
from metaunlearn.errors import UserError, did_you_mean
from metaunlearn.precision_names import LongName
from metaunlearn.settings import Settings


@dataclass(frozen=True, kw_only=True)
class SetRecipe:
    """What a data set shows."""

    description: str
    prompts: tuple[str, ...] = ()
    """Empty: they have to be given."""
    single: bool = False
    """Whether it is a set of one prompt."""


RECIPES = {
    "forget": SetRecipe(description="the concept to erase, to unlearn it"),
    "retain-related": SetRecipe(description="what is like the concept, to be kept"),
    "retain-unrelated": SetRecipe(description="plain everyday things, to be kept", prompts=EVERYDAY),
    "hrm-s": SetRecipe(description="one prompt of the erased concept, to attack with", single=True),
    "hrm-m": SetRecipe(description="several prompts of the erased concept, to attack with"),
    "clean": SetRecipe(
        description="benign pictures, to finetune as an honest user does",
        prompts=("a lovely dog", "a cute cat", "a small desk", "a big house", "a beautiful tree"),
    ),
    "spongebob": SetRecipe(
        description="a character, to attack with",
        prompts=(
            "SpongeBob is riding a bike.",
            "SpongeBob is catching jellyfish.",
            "SpongeBob is cooking burgers.",
            "SpongeBob is sleeping in a bed.",
            "SpongeBob is dancing happily.",
        ),
    ),
    "snoopy": SetRecipe(
        description="a character, to attack with",
        prompts=(
            "Snoopy is wearing his aviator hat.",
            "Snoopy is dancing joyfully.",
            "Snoopy is writing a novel.",
            "Snoopy is rowing a boat.",
            "Snoopy is playing baseball.",
        ),
    ),
    "thomas-kinkade": SetRecipe(
        description="an artist's style, to attack with",
        prompts=(
            "Thomas Kinkade inspired depiction of a city.",
            "A peaceful garden scene by Thomas Kinkade.",
            "A charming street by Thomas Kinkade.",
            "A lighthouse glowing by Thomas Kinkade.",
            "Thomas Kinkade inspired depiction of a beautiful chapel.",
        ),
    ),
    "kelly-mckernan": SetRecipe(
        description="an artist's style, to attack with",
        prompts=(
            "A snowy village painted by Kelly McKernan.",
            "A warm sunset by Kelly McKernan.",
            "A running fox by Kelly McKernan.",
            "Kelly McKernan inspired depiction of a tranquil forest.",
            "A beautiful lady by Kelly McKernan.",
        ),
    ),
}
"""By name."""


class MakeSettings(Settings):
    """How a data set is drawn."""

    images: int = Field(default=30, gt=0)
    """Pictures in all; the prompts take turns."""
    guidance_scale: float | None = Field(default=None, ge=0)
    """Of the generator; unset: its own default."""
    negative_prompt: str = ""
    """What is not to be seen, for generators that take one."""
    steps: int | None = Field(default=None, gt=0)
    """Sampling steps; unset: the generator's own default."""
    size: int | None = Field(default=None, gt=0)
    """Pixels a side; unset: the generator's own default."""
    batch_size: int = Field(default=8, gt=0)
    """Pictures that go through the generator together."""
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], LongName] = "float32"
    """In which the generator runs; FLUX.1 wants bfloat16."""
    near_duplicates: int = Field(default=2, ge=-1, le=64)
    """A picture that differs from an earlier one in at most so many of 64 bits is left out; -1: only identical ones."""


def recipe_named(name: str) -> SetRecipe:
    """The recipe of that name; UserError lists them."""
    if name not in RECIPES:
        raise UserError(
            f"There is no data set {name!r} (name=, NAME).{did_you_mean(name, RECIPES)} "
            f"There are: {', '.join(RECIPES)}."
        )
    return RECIPES[name]
