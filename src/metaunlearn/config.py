"""What can be set: how a concept is erased, how an attacker trains, what the demo tells."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from metaunlearn.guidance import as_drawn
from metaunlearn.overrides import as_list
from metaunlearn.precision_names import ShortName
from metaunlearn.settings import Settings

InnerOptimizer = Literal["sgd", "momentum", "adam", "adamw"]
Drawn = AfterValidator(lambda scale: None if scale is None else as_drawn(scale))
"""A guidance scale of pictures that a pipeline draws."""


class Attacker(Settings):
    """One simulated finetuning."""

    optimizer: InnerOptimizer
    """Its optimiser."""
    learning_rate: float = Field(ge=0)
    """tau."""
    steps: int = Field(gt=0)
    """M."""


class Of(Enum):
    """What a setting is of, where some runs do without it."""

    META = "the meta objective"
    """Read by runs with the meta objective alone."""
    ATTACKER = "the simulated finetuning and the gradient through it"
    """Read by those, and by a method with a defence of its own if it simulates an attacker, too."""
    FLATNESS = "a penalty of meta/flatness.py"
    """Read by every run but those of a method with a defence of its own."""
    TRAINING = "the outer loop"
    """Read by every run but a closed-form method's without the meta objective."""
    PICTURES = "the pictures that MODEL makes of itself"
    """Read by every run of the outer loop; a method that continues from another one uses the same pictures."""
    DATA = "how all retained pictures are used"
    """Read by every run of the outer loop, and the same for all of its stages."""


class EraseSettings(Settings):
    """How a concept is erased: Eq. 1, Eq. 3 and Algorithm 1, and the data that the model makes for it."""

    steps: Annotated[int, Of.TRAINING] = Field(gt=0)
    """N, outer steps."""
    learning_rate: Annotated[float, Of.TRAINING] = Field(gt=0)
    """omega, of the outer AdamW."""
    learning_rate_schedule: Annotated[Literal["constant", "cosine"], Of.TRAINING] = "constant"
    """constant, as the paper's; cosine: from omega down to 0, which takes the last steps' noise out of the weights."""
    weight_decay: Annotated[float, Of.TRAINING] = Field(default=0.0, ge=0)
    """Of the outer AdamW."""
    batch_size: Annotated[int, Of.TRAINING] = Field(gt=0)
    """Pictures in each batch: forget, retain and inner batches alike."""
    accumulation: Annotated[int, Of.TRAINING] = Field(default=1, gt=0)
    """Micro-batches of an outer step: all batches but the inner ones hold so many times batch_size pictures and go
    through the denoiser in so many parts, whose gradients are averaged."""
    replacement: Annotated[bool, Of.TRAINING] = True
    """Every batch is drawn from the whole of its set; false: each set is gone through picture by picture, epoch after
    epoch, each epoch in an order of its own."""
    ema_decay: Annotated[float | None, Of.TRAINING] = Field(default=None, ge=0, lt=1)
    """How much of the moving average of the trained weights stays at each step; the average is then what is saved.
    None: the weights themselves. The method sdd has a key of its own by this name, for its teacher."""
    gamma1: Annotated[float, Of.TRAINING] = Field(default=1.0, ge=0)
    """gamma_1, weight of the unlearn objective."""
    gamma2: Annotated[float, Of.META] = Field(ge=0)
    """gamma_2, weight of the meta objective."""
    zeta: Annotated[float, Of.META] = Field(default=1.0, ge=0)
    """zeta, weight of the self-destruction of retained concepts inside the meta objective."""
    retain_weight: Annotated[float, Of.TRAINING] = Field(ge=0)
    """lambda, weight of L_retain in Eq. 1."""
    retain_loss: Annotated[Literal["denoising", "distillation"], Of.TRAINING] = "denoising"
    """L_retain: the paper's L_DM on retained pictures; or distillation, the mean squared distance there to MODEL's own
    answer, which is zero where MODEL is."""
    retain_dropout: Annotated[float, Of.DATA] = Field(default=0.0, ge=0, lt=1)
    """Share of the retained pictures whose prompt is left empty, as in training a model for classifier-free guidance,
    which asks for the empty prompt too: what is kept of it alone is kept of every guided picture."""
    retain_weighting: Annotated[Literal["none", "alignment"], Of.DATA] = "none"
    """alignment: L_retain's pictures weigh the more, the further the gradient of their prompt's points along the
    concept's at theta* (Eq. 4): what unlearning harms most. Their mean weight is 1."""
    retain_related: Annotated[float | None, Of.TRAINING] = Field(default=None, ge=0)
    """Weight of the related pictures inside L_retain, beside retain_unrelated; None: all pictures weigh the same."""
    retain_unrelated: Annotated[float | None, Of.TRAINING] = Field(default=None, ge=0)
    """Weight of the unrelated pictures inside L_retain, beside retain_related."""
    zeta_margin: Annotated[float | None, Of.META] = Field(default=None, gt=0)
    """A retained picture self-destructs until its loss at theta_M exceeds the one at theta, under the same noise and
    timestep, by so much, and no further; None: without end, as in the paper's Eq. 3."""
    zeta_related: Annotated[float | None, Of.META] = Field(default=None, ge=0)
    """Weight of the related pictures inside Eq. 3's D_retain, beside zeta_unrelated; None: all weigh the same."""
    zeta_unrelated: Annotated[float | None, Of.META] = Field(default=None, ge=0)
    """Weight of the unrelated pictures inside Eq. 3's D_retain, beside zeta_related."""
    direct_term: Annotated[bool, Of.META] = True
    """Whether Eq. 3's + zeta L_DM(theta; D_retain) is there; the authors' code leaves it out."""
    common_noise: Annotated[bool, Of.META] = True
    """Whether both sides of Eq. 3's difference have the same noise and timesteps."""
    inner_steps: Annotated[int, Of.ATTACKER] = Field(gt=0)
    """M, simulated finetuning steps."""
    inner_learning_rate: Annotated[float, Of.ATTACKER] = Field(ge=0)
    """tau, of the simulated finetuning."""
    inner_optimizer: Annotated[InnerOptimizer, Of.ATTACKER] = "sgd"
    """Optimiser of the simulated finetuning; each outer step starts it afresh."""
    inner_momentum: Annotated[float, Of.ATTACKER] = Field(default=0.9, ge=0, lt=1)
    """mu, of the inner optimiser momentum."""
    inner_weight_decay: Annotated[float, Of.ATTACKER] = Field(default=0.01, ge=0)
    """delta, decoupled, of the inner optimiser adamw."""
    inner_eps_root: Annotated[float, Of.ATTACKER] = Field(default=1e-8, gt=0)
    """Inside Adam's square root, so that it can be differentiated; lower is truer to Adam and harder on float32."""
    inner_max_gradient_norm: Annotated[float | None, Of.ATTACKER] = Field(default=None, gt=0)
    """The simulated attacker clips its gradients to this norm; None: it does not."""
    inner_horizon: Annotated[int | None, Of.META] = Field(default=None, gt=0)
    """Every second outer step has an attacker that goes on from where its last turn ended, until it has taken so many
    steps and starts afresh: a long attack, a few steps at a time. None: all start at theta, as in the paper."""
    inner_subset: Annotated[str, Of.ATTACKER] = "f"
    """Denoiser parameters that the simulated attacker tunes: x, x-strict, first-xattn, u, selfattn, f (all), or method:
    those that the method trains."""
    inner_store: Annotated[Literal["device", "host", "disk"], Of.ATTACKER] = "device"
    """Where the exact meta-gradient keeps the M parameter sets of the simulated finetuning; host, disk: one at a time
    comes back to the device, same values."""
    attackers: Annotated[tuple[Attacker, ...], Of.ATTACKER] = ()
    """A mixture: each outer step draws one of these {optimizer, learning_rate, steps} in place of inner_optimizer,
    inner_learning_rate and inner_steps; empty: no mixture."""
    meta_gradient: Annotated[Literal["auto", "first-order", "gradient-difference", "double-backward"], Of.ATTACKER] = (
        "auto"
    )
    """How the meta-gradient is computed."""
    meta_loss: Annotated[Literal["end", "path"], Of.META] = "end"
    """Where Eq. 3's losses after the simulated finetuning are taken: at theta_M, as in the paper; or path, their mean
    over theta_1 .. theta_M, so that an attacker who stops early is resisted, too."""
    post_attack_loss: Annotated[Literal["denoising", "forget"], Of.META] = "denoising"
    """What Eq. 3 asks of the concept at theta_M: the paper's -L_DM, which has no end; or forget, + the method's own
    L_forget on the step's own batch, which is least where the concept is still forgotten."""
    meta_retain: Annotated[Literal["related", "unrelated", "both"], Of.META] = "both"
    """Which retained pictures self-destruct in the meta objective."""
    lipschitz_weight: Annotated[float, Of.FLATNESS] = Field(default=0.0, ge=0)
    """kappa, weight in the unlearn objective of || grad L_DM(theta; D_FT) ||, over all parameters: how fast finetuning
    on the concept could begin; 0: no such penalty."""
    sharpness_radius: Annotated[float, Of.FLATNESS] = Field(default=0.0, ge=0)
    """rho: L_forget is taken where it is worst within this distance of theta (sharpness-aware minimisation); 0: at
    theta."""
    heal_steps: Annotated[int, Of.TRAINING] = Field(default=0, ge=0)
    """Further outer steps, after the N of ``steps``, that lower lambda L_retain alone, without the concept; 0: none."""
    heal_learning_rate: Annotated[float | None, Of.TRAINING] = Field(default=None, gt=0)
    """Of the heal_steps' own AdamW at their beginning; it decays to 0 along a cosine. None: learning_rate."""
    stratified: Annotated[bool, Of.TRAINING] = True
    """Timesteps one from each stratum of a batch rather than independent."""
    max_gradient_norm: Annotated[float, Of.TRAINING] = Field(default=1.0, gt=0)
    """The outer gradient is clipped to this norm."""
    forget_images: Annotated[int, Of.PICTURES] = Field(gt=0)
    """Pictures of the concept that MODEL makes of itself; of several concepts in turn, and at least one of each."""
    retain_images: Annotated[int, Of.PICTURES] = Field(gt=0)
    """Pictures of retained concepts, related and unrelated each, that MODEL makes of itself: at most 8 a prompt."""
    forget_guidance: Annotated[float | None, Drawn, Of.PICTURES] = None
    """Guidance of the pictures of the concept; None: MODEL's own."""
    retain_guidance: Annotated[float | None, Drawn, Of.PICTURES] = None
    """Guidance of the retained pictures; None: MODEL's own. At 1 they follow the distribution that MODEL has learnt, so
    that L_retain is at its minimum where MODEL is; guided ones draw it away from there."""
    picture_batch: Annotated[int | None, Of.PICTURES] = Field(default=None, gt=0)
    """Pictures or sampling paths that MODEL makes at once; None: 32, fewer of more than 256 x 256 pixels."""
    bank_trajectories: Annotated[int, Of.TRAINING] = Field(gt=0)
    """Sampling paths of the frozen teacher; of several concepts in turn, and at least one of each."""
    bank_steps: Annotated[int, Of.TRAINING] = Field(gt=0)
    """Latents on each path."""
    bank_guidance: Annotated[float, Of.TRAINING] = Field(default=3.0, ge=0)
    """Guidance of those paths."""
    checkpoint_every: int = Field(default=50, gt=0)
    """Outer steps between two resumable states."""
    diagnostics_every: int = Field(default=25, ge=0)
    """Outer steps between two diagnoses in log.jsonl: Eq. 4's terms, Eq. 3's losses, first order's error; 0: none."""
    diagnostics_subset: str = "f"
    """Denoiser parameters over which Eq. 4's terms are taken: f (all), first-xattn as in the paper's Figure 6, ..."""
    diagnostics_exact: Annotated[Literal["none", "gradient-difference", "double-backward"], Of.META] = "none"
    """How a first-order run finds its error at a diagnosis; it takes an exact meta-gradient. An exact run knows it."""
    gradient_checkpointing: bool = False
    """Keep no activations inside the denoiser's blocks: a third more time, much less memory, the same gradients."""
    precision: Annotated[Literal["float32", "tf32", "bf16", "fp16"], ShortName] = "float32"
    """Of the products in first-order passes: those at theta, and with first-order the simulated attacker's and those at
    theta_M, too."""
    difference_precision: Annotated[Literal["float32", "tf32"], ShortName, Of.META] = "float32"
    """Of the products in an exact meta-gradient by gradient-difference; tf32 takes a longer step, and is the faster."""
    teacher_precision: Annotated[Literal["float32", "bf16", "fp16"], ShortName] = "float32"
    """Of the parameters that sampling paths and ESD's targets come from."""
    outer_optimizer: Annotated[Literal["adamw", "adamw-8bit"], Of.TRAINING] = "adamw"
    """adamw-8bit (bitsandbytes, on a GPU) keeps AdamW's moments in a quarter of the memory."""
    sharded: bool = False
    """Several processes share out the denoiser's parameters and all that has their shape (FSDP2), so that each holds
    its part only; no double backward then. One process holds everything either way."""

    @field_validator("attackers", mode="before")
    @classmethod
    def _from_toml(cls, value: Any) -> Any:
        """``--set attackers=[...]`` arrives as text, written as in a recipe."""
        return as_list(value)

    @model_validator(mode="after")
    def _weights_come_in_pairs(self) -> Self:
        for related, unrelated in (("retain_related", "retain_unrelated"), ("zeta_related", "zeta_unrelated")):
            given = [getattr(self, key) is not None for key in (related, unrelated)]
            if any(given) and not all(given):
                raise ValueError(f"{related} and {unrelated} come together: give both (--set KEY=...), or neither")
            if any(given) and self.batch_size < 2:
                raise ValueError(f"{related} and {unrelated} need a batch_size of at least 2, half for either kind")
        if self.zeta_related is not None and self.meta_retain != "both":
            raise ValueError(
                f"zeta_related and zeta_unrelated weigh two kinds of pictures, but meta_retain = {self.meta_retain!r} "
                "leaves one: set meta_retain=both, or neither weight"
            )
        return self

    @model_validator(mode="after")
    def _a_margin_needs_common_noise(self) -> Self:
        if self.zeta_margin is not None and not self.common_noise:
            raise ValueError(
                "zeta_margin compares each retained picture's loss at theta_M with its loss at theta, which means "
                "something under the same noise only: set common_noise=true, or zeta_margin=none"
            )
        return self

    @model_validator(mode="after")
    def _a_horizon_lies_beyond_one_turn(self) -> Self:
        longest = max(attacker.steps for attacker in self.simulated)
        if self.inner_horizon is not None and self.inner_horizon <= longest:
            raise ValueError(
                f"inner_horizon = {self.inner_horizon} is reached in one turn of {longest} steps, after which the "
                "attacker starts afresh anyway: set inner_horizon to more than inner_steps, or inner_horizon=none"
            )
        return self

    @property
    def total_steps(self) -> int:
        """N and the steps of healing: how many an erasing run takes."""
        return self.steps + self.heal_steps

    @property
    def simulated(self) -> tuple[Attacker, ...]:
        """The mixture, or the only attacker as a mixture of one."""
        alone = Attacker(optimizer=self.inner_optimizer, learning_rate=self.inner_learning_rate, steps=self.inner_steps)
        return self.attackers or (alone,)


def settings_of(*parts: Of) -> tuple[str, ...]:
    """Names of the erasing settings that are of one of ``parts``."""
    fields = EraseSettings.model_fields.items()
    return tuple(name for name, field in fields if any(part in field.metadata for part in parts))


class AttackSettings(Settings):
    """What every attack that trains has; a kind of attack adds its own (``attacks/``)."""

    optimizer: InnerOptimizer = "adamw"
    """Optimiser of the attacker."""
    learning_rate: float = Field(gt=0)
    """Of the attacker's optimiser."""
    batch_size: int = Field(default=8, gt=0)
    """Pictures in one forward pass."""
    accumulation: int = Field(default=1, gt=0)
    """Batches a step, whose gradients are averaged: an effective batch of ``batch_size`` times as many pictures."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW."""
    checkpoint_every: int = Field(default=50, gt=0)
    """Steps between two resumable states."""
    gradient_checkpointing: bool = False
    """Keep no activations inside the denoiser's blocks: a third more time, much less memory, the same gradients."""
    precision: Annotated[Literal["float32", "tf32", "bf16", "fp16"], ShortName] = "float32"
    """Of the products in the training's passes."""

    @property
    def rate(self) -> float:
        """The learning rate that the optimiser is given."""
        return self.learning_rate

    @property
    def settings(self) -> AttackSettings:
        """These settings: a kind of attack is a subclass of them."""
        return self


class Regime(Settings):
    """One attack of the demo, the same for both erased models."""

    steps: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=1)
    """Checkpoints, ascending."""
    learning_rate: float = Field(gt=0)
    """Of the attacker's AdamW."""
    pictures: int = Field(default=40, gt=0)
    """Real pictures that the attacker has."""

    @field_validator("steps")
    @classmethod
    def _ascending(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if list(steps) != sorted(set(steps)):
            raise ValueError(f"expected steps that ascend, such as [10, 20], got {list(steps)}")
        return steps


class Counts(Settings):
    """Generated pictures for one measurement."""

    concept: int = Field(gt=0)
    """Of the erased concept."""
    related: int = Field(ge=0)
    """Of related concepts; 0 leaves them out."""
    unrelated: int = Field(ge=0)
    """Of unrelated concepts; 0 leaves them, CLIP score and FID out."""


class StorySettings(Settings):
    """The demo: what is erased and how, which attacks, and how much is measured where."""

    concept: str = "knife"
    """An object or a style of Canvas, unless the call names another."""
    method: str = "esd-u-1"
    """How it is erased, unless the call names another."""
    recipe: str = "small"
    """Whose settings erase and attack."""
    erase: dict[str, Any] = Field(default_factory=dict)
    """Keys of :class:`EraseSettings` that the story wants otherwise than that recipe has them."""
    malicious: Regime
    """Real pictures of the concept, until the plainly unlearned model is half-way back."""
    strong: Regime
    """The same until it is all the way back."""
    benign: Regime
    """Pictures of unrelated things, as long as the malicious attack."""
    full: Counts
    """Before any attack, and at the end of the malicious and the benign one."""
    between: Counts
    """At the malicious attack's other checkpoints."""
    sparse: Counts
    """At the strong and the benign attack's other checkpoints."""

    @model_validator(mode="after")
    def _one_attackers_pictures(self) -> StorySettings:
        if self.strong.pictures != self.malicious.pictures:
            raise ValueError(
                "the strong attack goes on with the malicious one's pictures: expected as many, got "
                f"{self.strong.pictures} and {self.malicious.pictures}"
            )
        return self
