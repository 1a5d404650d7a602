"""The doctor's estimates, against counts on real tensors and sums done by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from conftest import TINY_SIZE
from metaunlearn import doctor
from metaunlearn.canvas.catalog import NAMES
from metaunlearn.conditioning import Conditioning
from metaunlearn.config import EraseSettings
from metaunlearn.doctor.advice import advise
from metaunlearn.doctor.counting import CPU_ATTENTION, counted_memory, facts_of, operations
from metaunlearn.doctor.passes import Pass, outer_step
from metaunlearn.erasing import erase
from metaunlearn.erasure.registry import configure
from metaunlearn.errors import UserError
from metaunlearn.meta.train import Algorithm1
from metaunlearn.models import TextToImageModel, load
from metaunlearn.models.unet_model import UNetModel
from metaunlearn.parameters import Params
from metaunlearn.recipe import read_recipe
from metaunlearn.settings import resolve
from toy_denoiser import counted_gradients


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> TextToImageModel:
    return load(tiny_model)


def settings(*overrides: str) -> EraseSettings:
    return resolve(EraseSettings, {**read_recipe("small-unbounded").erase, "meta_gradient": "auto"}, overrides)


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
    assert counted_gradients(settings(*overrides), meta=meta) == expected


def test_estimate_counts_parameters_and_scales_with_speed(tiny_model: Path, model: TextToImageModel) -> None:
    total = sum(p.numel() for p in model.unet.parameters())
    cross = sum(p.numel() for name, p in model.unet.named_parameters() if "attn2" in name)
    slow = doctor.estimate(tiny_model, method="esd-x-1", speed=1e9)
    fast = doctor.estimate(tiny_model, method="esd-x-1", speed=2e9)
    assert (slow.denoiser_parameters, slow.trained_parameters, slow.image_size) == (total, cross, TINY_SIZE)
    assert slow.recipe == "small"
    assert slow.seconds == pytest.approx(2 * fast.seconds)
    assert slow.seconds > slow.settings.steps * slow.seconds_per_step


def test_each_kind_of_method_costs_what_it_does(tiny_model: Path) -> None:
    """esd-x-1 and sdd train the same; SDD adds a forward pass on 8 pictures, and 2 x 32 x 20 passes every 50 steps. The
    second stage of a closed-form method has no L_forget, and its plain run neither steps nor pictures."""
    forward = doctor.forward_cost(load(tiny_model))[0] / doctor.EFFICIENCY / 1e9
    overrides = ["bank_trajectories=32", "bank_steps=20", "post_attack_loss=denoising", "zeta_margin=none"]
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
    """Two more inner steps keep two more sets of parameters: 2 x 4 bytes x P. To first order they keep none.

    From one step to three it is one set: a difference moves sets of the path, but of theta itself a copy. A diagnosed
    step adds theta_M, and at M = 2, where the last product has as much as the first, the first-order adjoint: 5, 6, 6
    and 8 sets beside theta. To first order the second step has a theta_{m-1} that is not theta.
    """

    def job(m: int, *more: str) -> doctor.JobEstimate:
        return doctor.estimate(tiny_model, overrides=[*more, f"inner_steps={m}"], speed=1e9)

    exact = ["inner_optimizer=sgd", "meta_gradient=auto", "inner_horizon=none"]
    one, two, three, five = (job(m, *exact) for m in (1, 2, 3, 5))
    a_set = 4 * one.denoiser_parameters
    assert five.memory_bytes - three.memory_bytes == 2 * a_set
    assert three.memory_bytes - one.memory_bytes == a_set
    assert three.memory_bytes == two.memory_bytes
    assert one.memory_bytes - job(1, *exact, "diagnostics_every=0").memory_bytes == a_set
    assert two.memory_bytes - job(2, *exact, "diagnostics_every=0").memory_bytes == 2 * a_set
    first = [job(m).memory_bytes for m in (1, 2, 3)]
    assert first[1] == first[2] == first[0] + a_set
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


def test_lines_say_how_they_know_and_what_to_switch_on(tiny_model: Path) -> None:
    machine = doctor.inspect_machine()
    job = doctor.estimate(tiny_model, speed=1e9)
    text = "\n".join(doctor.describe(machine, job))
    assert text.count("estimate by count") == 2
    assert "less memory" not in text
    assert job.advice == ()
    measured = "\n".join(doctor.describe(machine, replace(job, time_measured=True)))
    assert (measured.count("estimate by count"), measured.count("measured on this machine")) == (1, 1)
    short = "\n".join(doctor.describe(machine, doctor.estimate(tiny_model, speed=1e9, available_bytes=1000)))
    assert "less memory" in short
    assert "--set gradient_checkpointing=true" in short
    uncounted = doctor.Advice(overrides=("precision=bf16",), costs="digits", saves_bytes=None, left_bytes=10)
    advised = doctor.describe(machine, replace(job, available_bytes=1000, advice=(uncounted,)))[-1]
    assert "saves memory that no count knows; costs: digits" in advised
    assert "fits" not in advised
    nothing_left = doctor.describe(machine, replace(job, available_bytes=1000))
    assert "another device (--device)" in nothing_left[-1]


def test_lines_say_what_is_in_use_and_that_cards_can_share(tiny_model: Path) -> None:
    machine = replace(doctor.inspect_machine(), accelerators=("a card", "a card"))
    job = replace(doctor.estimate(tiny_model, speed=1e9), device="cuda", memory_bytes=3 * 2**30)
    busy = doctor.describe(machine, replace(job, available_bytes=4 * 2**30, free_bytes=2**30))
    assert busy[-1] == "  Only 1.0 GiB of it is free now: end what holds the rest, or wait for it."
    assert "free now" not in doctor.describe(machine, replace(job, available_bytes=4 * 2**30, free_bytes=4 * 2**30))[-1]
    short = replace(job, available_bytes=2 * 2**30, free_bytes=2**30)
    assert "--num_processes 2" in doctor.describe(machine, short)[-1]
    assert "--set sharded=true" in doctor.describe(machine, short)[-1]
    alone = replace(machine, accelerators=("a card",))
    on = replace(short, settings=short.settings.model_copy(update={"sharded": True}))
    for there, wanted in ((alone, short), (machine, on), (machine, replace(short, device="cpu"))):
        assert "sharded" not in "\n".join(doctor.describe(there, wanted))


# --- What to switch on -----------------------------------------------------------------------------------------------


def overrides_of(advice: tuple[doctor.Advice, ...]) -> list[str]:
    return [override for one in advice for override in one.overrides]


def test_advice_is_in_the_order_of_what_it_costs(tiny_model: Path) -> None:
    """Each saves what the estimate with it says; what is left with all of them is the estimate with all of them."""
    exact = ["batch_size=8", "meta_gradient=double-backward", "inner_optimizer=sgd", "inner_steps=4"]

    def estimated(*more: str) -> doctor.JobEstimate:
        return doctor.estimate(tiny_model, overrides=[*exact, *more], speed=1e9, available_bytes=1000)

    job = estimated()
    assert overrides_of(job.advice) == [
        "meta_gradient=gradient-difference", "gradient_checkpointing=true", "inner_store=disk",
        "teacher_precision=bf16", "batch_size=2", "accumulation=4", "meta_gradient=first-order", "picture_batch=1",
    ]  # fmt: skip
    for one in job.advice[:-1]:
        assert one.saves_bytes == job.memory_bytes - estimated(*one.overrides).memory_bytes > 0
    everything = dict(override.split("=") for override in overrides_of(job.advice))
    with_all = estimated(*(f"{key}={value}" for key, value in everything.items()))
    last, before = job.advice[-1], job.advice[-2]
    assert last.left_bytes == with_all.memory_bytes
    assert last.saves_bytes == before.left_bytes - last.left_bytes > 0
    assert estimated(*last.overrides).memory_bytes == job.memory_bytes
    assert with_all.advice == ()


def test_advice_leaves_out_what_the_job_does_not_have(tiny_model: Path) -> None:
    """A plain run has no path and no meta-gradient, and ResAlign's teacher is asked only when it is."""

    def advised(**options: Any) -> list[str]:
        return overrides_of(doctor.estimate(tiny_model, speed=1e9, available_bytes=1000, **options).advice)

    # Steps take more than the pictures and paths before them when these come one by one.
    small = ["batch_size=2", "picture_batch=1", "bank_trajectories=1"]
    assert advised(meta=False, overrides=[*small, "retain_loss=denoising"]) == ["gradient_checkpointing=true"]
    assert advised(meta=False, overrides=[*small, "retain_loss=distillation", "gradient_checkpointing=true"]) == [
        "teacher_precision=bf16"
    ]
    assert advised(method="uce", meta=False) == []
    assert advised(method="uce", meta=False, device="cuda") == []
    exact = [*small, "meta_gradient=gradient-difference"]
    assert "difference_precision=tf32" not in advised(meta=False, device="cuda", overrides=exact)
    assert "difference_precision=tf32" in advised(meta=True, device="cuda", overrides=exact)


def test_advice_on_a_gpu(model: TextToImageModel) -> None:
    """The host instead of files, and eight bits, which want one."""
    chosen = configure("esd-u-1", read_recipe("small"), ["meta_gradient=auto", "gradient_checkpointing=true"])
    facts = facts_of(model, 1000, chosen.settings)

    def count(s: EraseSettings) -> int:
        return counted_memory(chosen.method, facts, s, meta=True, defended=False, device="cuda")

    advice = advise(chosen.settings, count, needs=count(chosen.settings), device="cuda")
    assert overrides_of(advice)[:6] == [
        "meta_gradient=gradient-difference", "inner_store=host", "teacher_precision=bf16", "precision=bf16",
        "outer_optimizer=adamw-8bit", "difference_precision=tf32",
    ]  # fmt: skip
    uncounted = [one for one in advice if one.saves_bytes is None]
    assert overrides_of(tuple(uncounted)) == ["precision=bf16", "difference_precision=tf32"]
    assert uncounted[0].left_bytes == advice[2].left_bytes


@pytest.mark.parametrize(
    ("device", "overrides", "expected"),
    [
        ("cuda", ["meta_gradient=gradient-difference"], {"precision=bf16", "difference_precision=tf32"}),
        ("cuda", ["meta_gradient=first-order"], {"precision=bf16"}),
        ("cuda", ["meta_gradient=first-order", "precision=fp16"], set()),
        ("cuda", ["meta_gradient=auto", "precision=bf16", "difference_precision=tf32"], set()),
        ("cpu", ["meta_gradient=gradient-difference"], set()),
    ],
)
def test_products_are_advised_where_they_change_something(
    device: str, overrides: list[str], expected: set[str]
) -> None:
    """On a GPU, and TF32 where a difference is taken; whatever the count, which knows nothing of them."""
    advice = advise(settings(*overrides), lambda _: 1000, needs=1000, device=device)
    assert set(overrides_of(advice)) == expected


def test_a_gpu_does_not_hold_the_pipelines_own_denoiser_while_it_trains(model: TextToImageModel) -> None:
    """Its bytes lie on the host during the steps; where pictures and paths are the peak it is there."""
    chosen = configure("esd-u-1", read_recipe("small"), ["batch_size=64", "picture_batch=1", "inner_store=device"])
    facts = facts_of(model, 1000, chosen.settings)

    def on(device: str, *, pixels: int = 0) -> int:
        drawn = replace(facts, drawing=replace(facts.drawing, denoised=facts.drawing.denoised + pixels))
        return counted_memory(chosen.method, drawn, chosen.settings, meta=True, defended=False, device=device)

    assert on("cpu") - on("cuda") == on("cpu") - on("cuda:1") == 4 * facts.parameters
    assert on("cpu", pixels=2**40) == on("cuda", pixels=2**40)


# --- What a step takes -----------------------------------------------------------------------------------------------

STEP = ("steps=2", "forget_images=4", "retain_images=4", "bank_trajectories=2", "bank_steps=2", "batch_size=4",
        "diagnostics_every=0", "retain_loss=denoising", "inner_steps=2", "inner_optimizer=sgd")  # fmt: skip


@pytest.mark.parametrize(
    ("method", "meta", "more"),
    [
        ("esd-u-1", False, ["retain_loss=distillation"]),
        ("esd-u-1", False, ["accumulation=2", "latents=edited", "bank_refresh=1", "steps=3"]),
        ("esd-x-1", True, ["meta_gradient=first-order", "meta_retain=related"]),
        ("esd-x-1", True, ["meta_gradient=gradient-difference", "meta_loss=path", "zeta_margin=0.1"]),
        ("esd-x-1", True, ["meta_gradient=double-backward", "accumulation=2"]),
        ("sdd", True, ["meta_gradient=first-order", "bank_refresh=1", "steps=3"]),
        ("uce", True, ["meta_gradient=first-order", "common_noise=false"]),
    ],
)
def test_passes_are_those_of_a_real_step(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, method: str, meta: bool, more: list[str]
) -> None:
    """Pictures of every call of the denoiser in one outer step, with a gradient and without."""
    calls: Counter[tuple[int, bool]] = Counter()
    predict, take_step = UNetModel.predict, Algorithm1.take_step

    def counted(self: UNetModel, theta: Params, x_t: torch.Tensor, *rest: Any) -> torch.Tensor:
        calls[len(x_t), torch.is_grad_enabled()] += 1
        return predict(self, theta, x_t, *rest)

    def alone(self: Algorithm1) -> Any:
        calls.clear()
        record = take_step(self)
        found.update(calls if self.step == looked_at else {})
        return record

    # At the first step theta still is where a distillation's teacher is, and needs no answer of it; and paths that move
    # are sampled for the first time.
    looked_at = 2 if {"retain_loss=distillation", "bank_refresh=1"} & {*more} else 1
    found: Counter[tuple[int, bool]] = Counter()
    monkeypatch.setattr(UNetModel, "predict", counted)
    monkeypatch.setattr(Algorithm1, "take_step", alone)
    erase(tiny_model, ["zebra"], method=method, meta=meta, overrides=[*STEP, *more], shared_overrides=True)

    chosen = configure(method, read_recipe("small"), [*STEP, *more])
    expected: Counter[tuple[int, bool]] = Counter()
    for one, count in outer_step(chosen.method, chosen.settings, meta=meta, paths=32).items():
        expected[one.pictures, one.kind not in ("forward", "teacher")] += count  # type: ignore[assignment]
    assert found == expected


def test_accumulation_and_paths_take_their_time(tiny_model: Path) -> None:
    """Healing goes through as many pictures as its steps do; a step of a path is two passes."""
    forward = doctor.forward_cost(load(tiny_model))[0] / doctor.EFFICIENCY / 1e9
    overrides = ["batch_size=8", "bank_trajectories=4", "bank_steps=5", "retain_loss=denoising", "accumulation=2"]

    def seconds(*more: str) -> float:
        return doctor.estimate(tiny_model, meta=False, overrides=[*overrides, *more], speed=1e9).seconds

    plain = seconds()
    assert seconds("heal_steps=5") - plain == pytest.approx(2 * 5 * 8 * 3 * forward)
    assert seconds("bank_steps=7") - plain == pytest.approx(2 * 4 * 2 * forward)


def test_a_gradient_is_three_passes_and_a_checkpointed_one_four(model: TextToImageModel) -> None:
    facts = facts_of(model, 0, settings())
    for kind, checkpointed, passes in (("trained", False, 3), ("trained", True, 4), ("forward", True, 1)):
        found = operations(Pass(kind, 5), facts, gradient_checkpointing=checkpointed)  # type: ignore[arg-type]
        assert found == passes * 5 * facts.forward


def test_memory_of_other_attackers_and_of_sets_elsewhere(tiny_model: Path) -> None:
    """The way back of Adam wants every gradient beside every theta; elsewhere, one of them at a time. Momentum has two
    adjoints and a direction more; of a single step theta itself is moved where its bits lie elsewhere, else a copy."""

    def memory(optimizer: str, m: int, *more: str) -> int:
        said = [f"inner_optimizer={optimizer}", "meta_gradient=gradient-difference", "inner_horizon=none"]
        return doctor.estimate(tiny_model, overrides=[*said, *more, f"inner_steps={m}"], speed=1e9).memory_bytes

    a_set = 4 * sum(p.numel() for p in load(tiny_model).unet.parameters())
    assert memory("adam", 5) - memory("adam", 3) == 2 * 2 * a_set
    assert memory("adam", 5, "inner_store=disk") == memory("adam", 3, "inner_store=disk")
    assert memory("momentum", 3) - memory("sgd", 3) == 3 * a_set
    assert memory("sgd", 1) - memory("sgd", 1, "inner_store=disk") == a_set
