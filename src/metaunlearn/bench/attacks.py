"""What a bench's recipe says of an attack."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import Field

from metaunlearn.attacks import ON_PROMPTS
from metaunlearn.attacks.detectors import JUDGE, TESTS
from metaunlearn.attacks.lora import WEIGHTS_FILE
from metaunlearn.attacks.registry import known, leaves_pictures, needs, strengths_of
from metaunlearn.errors import UserError
from metaunlearn.metrics.nudity import rule_named
from metaunlearn.settings import Settings


class Donor(NamedTuple):
    """What an attack brings that was trained on the base model, and that a grid trains itself."""

    kind: str
    """The attack that trains it."""
    setting: str
    """The setting that names it."""
    left_in: str
    """What it is called in its cell."""


DONORS = {
    "lora-merge": Donor("lora", "adapter", WEIGHTS_FILE),
    "add-difference": Donor("finetune", "donor", "model"),
}
"""By attack."""
BENIGN = "clean"
"""The data set of honest users."""
Steps = tuple[int, ...]


class PromptSource(Settings):
    """Prompts: as they stand here, or of a file that the call names."""

    texts: tuple[str, ...] = ()
    """The prompts themselves."""
    file: str = ""
    """What ``--prompts NAME=FILE`` calls the file that has them."""


class WarmUp(Settings):
    """Finetuning that goes before an attack."""

    data: str = BENIGN
    """A data set, as an attack's."""
    pictures: int = Field(default=40, gt=0)
    """How many real pictures of Canvas there are."""
    steps: int = Field(gt=0)
    """How long."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings, over the concept's settings of attacks."""


class GridAttack(Settings):
    """One attack on every erased model."""

    name: str
    """As the tables call it."""
    data: str = ""
    """The attacker's data set: on Canvas real pictures (canvas/datasets.py), else those of ``--use NAME=DIR``, as
    ``metaunlearn data make`` leaves them."""
    pictures: int = Field(default=40, gt=0)
    """How many real pictures of Canvas it has."""
    kind: str = "finetune"
    """As ``attack --kind`` has it: what is trained on them, what is done without training, or the attack on prompts."""
    steps: Steps = ()
    """Checkpoints of one that trains; empty: the concept's. Of lora-merge and add-difference, how long
    what they bring is trained."""
    strengths: tuple[float, ...] = ()
    """Of one that does not train, the strongest last; empty: those that the kind has."""
    prompts: PromptSource | None = None
    """Those that the attack on prompts starts from; it has no data set and no steps."""
    success: str | None = None
    """What tells whether the attack on prompts has succeeded: ``judge``, the grid's (None, too), ``nudity[:RULE]``, by
    NudeNet, or ``unsafe``, by the safety checker."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings of this attack, over the concept's."""
    warm_up: WarmUp | None = None
    """Finetuning on other pictures first, from which this attack goes on; None: it starts at the erased model."""

    @property
    def on_prompts(self) -> bool:
        """Whether it changes prompts rather than the model."""
        return self.kind == ON_PROMPTS

    @property
    def trains(self) -> bool:
        """Whether it goes on step by step, so that its scores make a curve."""
        return not self.on_prompts and strengths_of(self.kind) is None

    @property
    def takes_data(self) -> bool:
        """Whether somebody trains on pictures, or starts from them."""
        return "data" in needs(self.kind) or self.kind in DONORS

    @property
    def data_sets(self) -> tuple[str, ...]:
        """Its data set, and that of the finetuning before it."""
        return (self.data, *([self.warm_up.data] if self.warm_up else []))

    def words(self, level: float) -> str:
        """``60 steps``, ``0.5``; nothing for the one level of an attack on prompts."""
        if self.on_prompts:
            return ""
        return f"{level:g} steps" if self.trains else f"{level:g}"

    @property
    def malicious(self) -> bool:
        """Whether it finetunes the concept back."""
        return self.trains and self.data != BENIGN


def _check_success(success: str, who: str) -> None:
    name, _, rule = success.partition(":")
    if name == "nudity" and rule:
        rule_named(rule)
    elif success not in TESTS:
        raise UserError(f"{who} has success = {success!r}; expected judge, nudity, nudity:RULE or unsafe.")


def check_attack(attack: GridAttack, *, pictures_judged: bool) -> None:
    """UserError when parts of ``attack`` do not go together, or it leaves pictures that would not be judged."""
    who = f"the attack {attack.name!r} ({attack.kind})"
    known(attack.kind)
    if attack.on_prompts:
        if attack.data or attack.steps or attack.strengths or attack.warm_up or attack.prompts is None:
            raise UserError(f"{who} is on prompts: it needs prompts, no data, no steps, no strengths and no warm_up.")
        _check_success(attack.success or JUDGE, who)
        return
    if attack.prompts or attack.success:
        raise UserError(f"{who} is not on prompts: prompts and success are for {ON_PROMPTS}.")
    if attack.data and not attack.takes_data:
        raise UserError(f"{who} takes no data; got {attack.data!r}.")
    if attack.trains:
        if attack.strengths:
            raise UserError(f"{who} trains: it has steps, no strengths; got {list(attack.strengths)}.")
        return
    if attack.warm_up or len({*attack.strengths}) < len(attack.strengths):
        raise UserError(f"{who} does not train: it has strengths, each once, and no warm_up.")
    if attack.kind in DONORS and len(attack.steps) != 1:
        raise UserError(f"{who} needs steps = [N], how long what it brings is trained; got {list(attack.steps)}.")
    if attack.kind not in DONORS and attack.steps:
        raise UserError(f"{who} does not train: it has strengths, no steps; got {list(attack.steps)}.")
    if leaves_pictures(attack.kind) and not pictures_judged:
        raise UserError(
            f"{who} leaves pictures, which a grid judges by a task of Canvas only ([grid.measure]). Elsewhere run "
            "`metaunlearn attack`, and `metaunlearn evaluate` with what it leaves."
        )
