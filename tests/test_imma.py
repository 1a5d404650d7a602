"""IMMA's steps in float64 against a LoRA, an ascent and torch's AdamW written out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from meta_problems import error
from metaunlearn.checkpoint import step_generator
from metaunlearn.conditioning import Conditioning
from metaunlearn.data.latents import ErasureData
from metaunlearn.diffusion import denoising_loss
from metaunlearn.erasure.imma import Imma, ImmaDefence
from metaunlearn.erasure.interface import ErasureTask
from metaunlearn.errors import UserError
from metaunlearn.meta.train import Algorithm1
from metaunlearn.parameters import Params
from toy_denoiser import SHAPE, TIMESTEPS, ToyDenoiser, drawn, latent_set, toy_settings

STEPS, TAU, OMEGA, LAMBDA, GAMMA = 4, 0.02, 0.01, 0.9, 0.8
TARGETS = ("to_q", "to_out.0")


class Layers(ToyDenoiser):
    """The toy with layers of an attention's names."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            attention = {"to_q": nn.Linear(8, 6), "to_out": nn.ModuleList([nn.Linear(6, 6)])}
            self.unet = nn.ModuleDict({"attn": nn.ModuleDict(attention), "out": nn.Linear(6, 4)}).double()

    def predict(self, theta: Params, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        x = torch.cat([x_t.flatten(1), cond.tokens.flatten(1)], dim=1)
        for layer in ("attn.to_q", "attn.to_out.0"):
            x = torch.tanh(x @ theta[f"{layer}.weight"].T + theta[f"{layer}.bias"] + t[:, None] / TIMESTEPS)
        return (x @ theta["out.weight"].T + theta["out.bias"]).view(-1, *SHAPE)


def started(*more: str) -> Algorithm1:
    """IMMA at its start on the toy, from the toy itself; clipping bites at either level."""
    settings = toy_settings(
        "batch_size=4", f"steps={STEPS}", "learning_rate_schedule=constant", f"learning_rate={OMEGA}", "inner_steps=2",
        f"inner_learning_rate={TAU}", "inner_max_gradient_norm=0.5", "max_gradient_norm=0.3", "retain_loss=denoising",
        f"retain_weight={LAMBDA}", f"gamma1={GAMMA}", "weight_decay=0.1", *more,
    )  # fmt: skip
    model = Layers()
    data = ErasureData(forget=latent_set(1, 30), related=latent_set(2, 30), unrelated=latent_set(3, 30))
    task = ErasureTask(model=model, prompts=None, settings=settings, seed=0)  # type: ignore[arg-type]
    method = Imma(base=None, targets=TARGETS, rank=2)
    return Algorithm1(
        model, data, None, settings, trained=method.trained(model), meta=False, seed=0,  # type: ignore[arg-type]
        defence=method.defend(task, data),
    )  # fmt: skip


def written_out(run: Algorithm1, *, down: float = 1.0, up: float = -1.0, kept: bool = True) -> Params:
    """theta after ``STEPS`` turns: two clipped AdamW steps of A and B on L_FT, one of theta on -L_FT + lambda L_retain.

    ``kept``: whether A, B and their optimiser go on from turn to turn.
    """
    model = Layers()
    theta = {name: p.requires_grad_() for name, p in model.parameters().items()}
    trained = [p for name, p in theta.items() if "attn" in name]
    outer = torch.optim.AdamW(trained, lr=OMEGA, weight_decay=0.1)
    for step in range(STEPS):
        if step == 0 or not kept:
            g = step_generator(0, 0, "imma")
            A = {layer: nn.Parameter((torch.randn(2, n, generator=g) / 2).double()) for layer, n in SIZES.items()}
            B = {layer: nn.Parameter(torch.zeros(6, 2).double()) for layer in SIZES}
            inner = torch.optim.AdamW([*A.values(), *B.values()], lr=TAU, weight_decay=0.01)
        batches = drawn(run, step)

        def tuned(A: Params = A, B: Params = B) -> Params:
            weights = {f"{layer}.weight": theta[f"{layer}.weight"] + B[layer] @ A[layer] for layer in SIZES}
            return theta | weights

        for batch in batches.inner:
            inner.zero_grad()
            (down * denoising_loss(model, tuned(), batch)).backward()
            torch.nn.utils.clip_grad_norm_([*A.values(), *B.values()], 0.5)
            inner.step()
        outer.zero_grad()
        concept = denoising_loss(model, tuned(), batches.outer)
        retained = denoising_loss(model, theta, batches.retain.batch)
        (GAMMA * (up * concept + LAMBDA * retained)).backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.3)
        outer.step()
    return {name: p.detach() for name, p in theta.items()}


SIZES = {"attn.to_q": 8, "attn.to_out.0": 6}
"""Width of what each target reads."""


def moved(theta: Params) -> Params:
    start = Layers().parameters()
    return {name: p - start[name] for name, p in theta.items() if "attn" in name}


def test_turns_are_a_loras_descent_and_thetas_ascent() -> None:
    run = started()
    theta = run.run(None, lambda record: None)
    assert all(torch.equal(theta[name], p) for name, p in Layers().parameters().items() if "attn" not in name)
    assert error(moved(theta), moved(written_out(run))) < 1e-9


@pytest.mark.parametrize("wrong", [{"down": -1.0}, {"up": 1.0}, {"kept": False}])
def test_signs_and_the_loras_memory_are_seen(wrong: dict[str, float]) -> None:
    run = started()
    theta = run.run(None, lambda record: None)
    assert error(moved(theta), moved(written_out(run, **wrong))) > 1e-2  # type: ignore[arg-type]


def test_nothing_moves_before_the_step_is_taken() -> None:
    run = started()
    first, again = run.outer_gradient()[0], run.outer_gradient()[0]
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_micro_batches_add_up() -> None:
    """The same pictures in one part and in two: the same gradient, to rounding."""
    whole, parts = started("batch_size=8"), started("accumulation=2", "batch_size=4")
    generator = step_generator(0, 0)
    batch = whole.data.forget.draw(8, generator)
    inner = [whole.data.forget.draw(4, generator)]
    halves = [type(batch)(*(x[rows] for x in batch)) for rows in (slice(0, 4), slice(4, 8))]
    assert whole.defence is not None
    assert parts.defence is not None
    one = whole.defence.gradient(whole.theta, 0, inner, [batch]).gradient
    assert error(parts.defence.gradient(parts.theta, 0, inner, halves).gradient, one) < 1e-12


def test_a_mixture_of_attackers_is_refused() -> None:
    with pytest.raises(UserError, match=r"imma has one attacker.*a mixture"):
        started('attackers=[{optimizer = "sgd", learning_rate = 0.1, steps = 1}]')


def test_the_attackers_layers_are_trained_with_their_biases() -> None:
    names = Imma(targets=TARGETS).trained(Layers())  # type: ignore[arg-type]
    assert names == {f"attn.{layer}.{kind}" for layer in TARGETS for kind in ("weight", "bias")}


def test_it_resumes_bit_for_bit(tmp_path: Path) -> None:
    """The LoRA, its moments and how many steps it has taken, which Adam's correction of them depends on."""
    whole = started().run(None, lambda record: None)
    first, second = started(), started()
    first.take_step()
    first.save(tmp_path / "state.safetensors")
    second.restore(tmp_path / "state.safetensors")
    assert isinstance(second.defence, ImmaDefence)
    assert second.defence.lora.steps == 2
    found = second.run(None, lambda record: None)
    assert all(torch.equal(p, found[name]) for name, p in whole.items())
