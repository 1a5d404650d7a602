"""The doctor's estimates, against counts on real tensors and sums done by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from metaunlearn import doctor
from metaunlearn.canvas.catalog import NAMES
from metaunlearn.conditioning import Conditioning
from metaunlearn.config import EraseSettings
from metaunlearn.doctor.counting import CPU_ATTENTION
from metaunlearn.errors import UserError
from metaunlearn.models import TextToImageModel, load
from metaunlearn.recipe import read_recipe
from metaunlearn.settings import resolve


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> TextToImageModel:
    return load(tiny_model)


def settings(*overrides: str) -> EraseSettings:
    return resolve(EraseSettings, {**read_recipe("small").erase, "meta_gradient": "auto"}, overrides)


def test_machine_has_what_is_required() -> None:
    machine = doctor.inspect_machine()
    assert machine.cores >= 1
    assert None not in machine.packages.values()
    assert machine.packages["torch"] == torch.__version__


def test_forward_cost_is_that_of_a_real_forward_pass(model: TextToImageModel) -> None:
    """Fake tensors against real ones. Bytes: every distinct tensor that autograd keeps, parameters aside."""
    kept: dict[int, torch.Tensor] = {}
    theta = {name: p.requires_grad_() for name, p in model.parameters().items()}
    owned = {p.data_ptr() for p in theta.values()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    x_t, cond = torch.zeros(1, *model.latent_shape), Conditioning(torch.zeros(1, 24, 16))
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.predict(theta, x_t, torch.zeros(1, dtype=torch.long), cond)
    real_bytes = sum(tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in owned)

    operations, bytes_kept = doctor.forward_cost(model)
    assert operations == counter.get_total_flops()
    assert bytes_kept == pytest.approx(real_bytes, rel=0.01)


def test_operations_of_attention() -> None:
    """Two products of (8 x 16) by (16 x 8) for each of 2 heads: 2 x 2 x (2 x 8 x 16 x 8) operations."""
    q = torch.zeros(1, 2, 8, 16)
    (count,) = CPU_ATTENTION.values()
    assert count(q.shape, q.shape, q.shape) == 2 * 2 * (2 * 8 * 16 * 8)


@pytest.mark.parametrize(
    ("overrides", "meta", "expected"),
    [
        ((), False, 2),  # L_forget, L_retain
        (
            ("inner_steps=1", "meta_retain=both"),
            True,
            2 + 1 + 2 + 2,
        ),  # and an inner step, two terms at theta_M, a product
        (("inner_steps=5", "meta_retain=both"), True, 2 + 5 + 2 + 10),
        (("inner_steps=5", "meta_retain=related"), True, 2 + 1 + 5 + 2 + 10),  # and the direct term on its own batch
        (("inner_steps=5", "meta_retain=both", "meta_gradient=first-order"), True, 2 + 5 + 2),
        (("inner_steps=5", "common_noise=false"), True, 2 + 1 + 5 + 2 + 10),  # the same pictures under other noise
        (("inner_steps=5", "common_noise=false", "direct_term=false"), True, 2 + 5 + 2 + 10),
        (("inner_steps=5", "meta_loss=path"), True, 2 + 5 + 5 * 2 + 10),
        (("inner_steps=5", "zeta_margin=0.1"), True, 2 + 1 + 5 + 2 + 10),  # the direct term waits for theta_M
        (("accumulation=3",), False, 3 * 2),
        (("inner_steps=5", "accumulation=3"), True, 3 * (2 + 2) + 5 + 10),  # the attacker's batches stay as they are
    ],
)
def test_gradients_per_step(overrides: tuple[str, ...], meta: bool, expected: int) -> None:
    """The products cost two gradients each: one on either side of a difference."""
    assert doctor.gradients_per_step(settings(*overrides), meta=meta) == expected


def test_estimate_counts_parameters_and_scales_with_speed(tiny_model: Path, model: TextToImageModel) -> None:
    total = sum(p.numel() for p in model.unet.parameters())
    cross = sum(p.numel() for name, p in model.unet.named_parameters() if "attn2" in name)
    slow = doctor.estimate(tiny_model, method="esd-x-1", speed=1e9)
    fast = doctor.estimate(tiny_model, method="esd-x-1", speed=2e9)
    assert (slow.denoiser_parameters, slow.trained_parameters, slow.image_size) == (total, cross, 32)
    assert slow.recipe == "small"
    assert slow.seconds == pytest.approx(2 * fast.seconds)
    assert slow.seconds > slow.settings.steps * slow.seconds_per_step


def test_each_kind_of_method_costs_what_it_does(tiny_model: Path) -> None:
    """esd-x-1 and sdd train the same; SDD adds a forward pass on 8 pictures, and 2 x 32 x 20 passes every 50 steps. The
    second stage of a closed-form method has no L_forget, and its plain run neither steps nor pictures."""
    forward = doctor.forward_cost(load(tiny_model))[0] / doctor.EFFICIENCY / 1e9
    overrides = ["bank_trajectories=32", "bank_steps=20"]
    esd = doctor.estimate(tiny_model, method="esd-x-1", overrides=overrides, speed=1e9)
    sdd = doctor.estimate(tiny_model, method="sdd", overrides=overrides, speed=1e9)
    assert sdd.seconds_per_step - esd.seconds_per_step == pytest.approx((8 + 2 * 32 * 20 / 50) * forward)
    assert sdd.memory_bytes - esd.memory_bytes == 4 * esd.trained_parameters
    uce = doctor.estimate(tiny_model, method="uce", speed=1e9)
    assert (uce.method, uce.gradients_per_step) == ("uce-2023", esd.gradients_per_step - 1)
    averaged = doctor.estimate(tiny_model, method="esd-x-1", overrides=[*overrides, "ema_decay=0.9"], speed=1e9)
    assert averaged.memory_bytes == sdd.memory_bytes
    plain = doctor.estimate(tiny_model, method="uce", meta=False, speed=1e9)
    assert (plain.gradients_per_step, plain.seconds) == (0, 0)
    with pytest.raises(UserError, match="Did you mean 'rece'"):
        doctor.estimate(tiny_model, method="recee")


def test_a_distilled_retain_loss_asks_a_copy_of_the_model(tiny_model: Path, model: TextToImageModel) -> None:
    """One forward pass on 8 pictures a step, and the copy, in the teacher's precision."""
    forward, _ = doctor.forward_cost(model)
    overrides = ["batch_size=8"]
    plain = doctor.estimate(tiny_model, meta=False, overrides=[*overrides, "retain_loss=denoising"], speed=1e9)
    distilled = doctor.estimate(tiny_model, meta=False, overrides=[*overrides, "retain_loss=distillation"], speed=1e9)
    assert (distilled.seconds_per_step - plain.seconds_per_step) * doctor.EFFICIENCY * 1e9 == pytest.approx(8 * forward)
    assert distilled.memory_bytes - plain.memory_bytes == 4 * plain.denoiser_parameters
    half = doctor.estimate(
        tiny_model, meta=False, speed=1e9,
        overrides=[*overrides, "retain_loss=distillation", "teacher_precision=bf16"],
    )  # fmt: skip
    assert half.memory_bytes - plain.memory_bytes == 4 * (plain.denoiser_parameters // 2)


def test_healing_and_weighing_take_their_time(tiny_model: Path) -> None:
    """5 steps of 3 + 1 passes on 8 pictures; 3 passes on 16 latents for 2 prompts of each kind and the concept."""
    forward = doctor.forward_cost(load(tiny_model))[0] / doctor.EFFICIENCY / 1e9
    overrides = ["batch_size=8", "retain_images=2"]

    def seconds(*more: str) -> float:
        return doctor.estimate(tiny_model, meta=False, overrides=[*overrides, *more], speed=1e9).seconds

    plain = seconds()
    assert seconds("heal_steps=5") - plain == pytest.approx(5 * 8 * 4 * forward)
    assert seconds("retain_weighting=alignment") - plain == pytest.approx(3 * 16 * 5 * forward)
    with pytest.raises(UserError, match="post_attack_loss"):
        doctor.estimate(tiny_model, method="uce", overrides=["post_attack_loss=forget"], speed=1e9)


def test_memory_grows_by_one_copy_an_inner_step(tiny_model: Path) -> None:
    """Two more inner steps keep two more sets of parameters: 2 x 4 bytes x P. To first order they keep none."""
    exact = ["inner_optimizer=sgd", "meta_gradient=auto"]
    one = doctor.estimate(tiny_model, overrides=[*exact, "inner_steps=1"], speed=1e9)
    three = doctor.estimate(tiny_model, overrides=[*exact, "inner_steps=3"], speed=1e9)
    assert three.memory_bytes - one.memory_bytes == 2 * 4 * one.denoiser_parameters
    first = [doctor.estimate(tiny_model, overrides=[f"inner_steps={m}"], speed=1e9).memory_bytes for m in (1, 3)]
    assert first[0] == first[1]
    plain = doctor.estimate(tiny_model, overrides=["inner_steps=1"], meta=False, speed=1e9)
    assert plain.memory_bytes < one.memory_bytes


def test_pictures_are_counted_as_a_run_makes_them(tiny_model: Path) -> None:
    """At most 8 of each prompt; Canvas's words, which the tiny model shares, make five of each object, plainly and in
    four styles, and they serve as related and as unrelated. A picture takes 3 sampling steps of 2 passes.
    """
    forward = doctor.forward_cost(load(tiny_model))[0] / doctor.EFFICIENCY / 1e9

    def seconds(*overrides: str) -> float:
        return doctor.estimate(tiny_model, method="uce", overrides=["steps=1", *overrides], speed=1e9).seconds

    few, many = seconds("retain_images=10", "forget_images=1"), seconds("retain_images=10", "forget_images=3")
    assert many - few == pytest.approx(2 * 3 * 2 * forward)
    most = 2 * 8 * 5 * len(NAMES)
    assert seconds("retain_images=5000", "forget_images=1") - few == pytest.approx((most - 20) * 3 * 2 * forward)


def test_estimate_refuses_what_the_job_would_refuse(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="unknown method 'esd-z-1'"):
        doctor.estimate(tiny_model, method="esd-z-1")
    with pytest.raises(UserError, match=r"innner_steps.*Did you mean 'inner_steps'"):
        doctor.estimate(tiny_model, overrides=["innner_steps=2"])


def test_lines_say_that_they_estimate_and_when_memory_is_short(tiny_model: Path) -> None:
    machine = doctor.inspect_machine()
    job = doctor.estimate(tiny_model, speed=1e9)
    text = "\n".join(doctor.describe(machine, job))
    assert text.count("(estimate)") == 2
    assert "less memory" not in text
    assert "less memory" in "\n".join(doctor.describe(replace(machine, memory_bytes=1000), job))
