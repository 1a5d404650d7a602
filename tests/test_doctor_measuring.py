"""What the doctor measures rather than counts, with clocks whose ticks the test decides."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from metaunlearn import doctor
from metaunlearn.doctor import estimating
from metaunlearn.doctor.counting import counted_memory, facts_of, lasting_bytes
from metaunlearn.doctor.measuring import Bench, _modes
from metaunlearn.doctor.meter import Meter
from metaunlearn.doctor.passes import Pass, outer_step
from metaunlearn.erasing import erase
from metaunlearn.erasure.registry import configure
from metaunlearn.meta.hypergradient import DoubleBackward, FirstOrder, GradientDifference
from metaunlearn.meta.modes import mode_name
from metaunlearn.meta.train import Algorithm1
from metaunlearn.models import TextToImageModel, load, load_pipeline
from metaunlearn.models.unet_model import UNetModel
from metaunlearn.parameters import Loss, Params
from metaunlearn.recipe import read_recipe


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> TextToImageModel:
    return load(tiny_model)


def ticking(seconds: float) -> Callable[[], float]:
    """A clock that goes on by so much whenever it is looked at, so that everything takes that long."""
    at = itertools.count()
    return lambda: next(at) * seconds


def test_a_measured_time_is_made_of_what_was_measured(tiny_model: Path) -> None:
    """When every call takes as long: one gradient at theta, 3 of the attacker, one at theta_M, the teacher's answer;
    the arithmetic of the meta-gradient and of the outer step. And plainly: a gradient, the answer, the arithmetic."""
    overrides = ["inner_steps=3", "meta_gradient=first-order", "retain_loss=distillation", "steps=10", "batch_size=4"]
    overrides += ["zeta_margin=none"]

    def job(tick: float, meta: bool) -> doctor.JobEstimate:
        return doctor.estimate(
            tiny_model, meta=meta, overrides=overrides, speed=1e12, measured=True, clock=ticking(tick)
        )

    found = job(0.25, True)
    assert found.time_measured
    assert found.seconds_per_step == pytest.approx(8 * 0.25)
    assert found.to_dict()["time_measured"] is True
    assert job(0.5, False).seconds_per_step == pytest.approx(3 * 0.5)
    # Pictures and paths: two passes for each of their steps, a quarter of a batch's time each.
    counted = doctor.estimate(tiny_model, overrides=overrides, speed=1e12)
    forward = doctor.forward_cost(load(tiny_model))[0] / doctor.EFFICIENCY / 1e12
    passes_before = (counted.seconds - 10 * counted.seconds_per_step) / forward
    assert found.seconds - 10 * found.seconds_per_step == pytest.approx(passes_before * 0.25 / 4)


def test_what_takes_long_or_does_not_fit_is_counted(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(estimating, "measure", fail)
    slow = doctor.estimate(tiny_model, speed=1e6, measured=True)
    assert (slow.time_measured, slow.memory_measured) == (False, False)
    assert slow.seconds == doctor.estimate(tiny_model, speed=1e6).seconds
    monkeypatch.setattr(estimating, "free_memory", lambda device: slow.memory_bytes)
    assert not doctor.estimate(tiny_model, speed=1e12, measured=True).time_measured
    monkeypatch.setattr(estimating, "free_memory", lambda device: slow.memory_bytes + 1)
    with pytest.raises(AssertionError):
        doctor.estimate(tiny_model, speed=1e12, measured=True)


@pytest.mark.parametrize("mode", ["first-order", "auto"])
def test_measuring_leaves_no_trace(tiny_model: Path, mode: str) -> None:
    pipeline = load_pipeline(tiny_model)
    before = {name: p.detach().clone() for name, p in pipeline.unet.named_parameters()}
    random = torch.get_rng_state()
    overrides = [f"meta_gradient={mode}", "inner_optimizer=adam", "gradient_checkpointing=true", "ema_decay=0.9"]
    job = doctor.estimate(pipeline, overrides=overrides, speed=1e12, measured=True)
    assert job.time_measured
    assert torch.equal(torch.get_rng_state(), random)
    for name, p in pipeline.unet.named_parameters():
        assert torch.equal(p, before[name])
        assert p.grad is None
    assert not pipeline.unet.is_gradient_checkpointing


def test_the_arithmetic_is_that_of_a_step(model: TextToImageModel) -> None:
    """The passes that it would take are those of the meta-gradient in ``outer_step``."""
    overrides = ["meta_gradient=double-backward", "inner_optimizer=adam", "inner_steps=3", "meta_loss=path"]
    for mode in (DoubleBackward(), GradientDifference(), FirstOrder()):
        chosen = configure("uce", read_recipe("small"), [*overrides, f"meta_gradient={mode_name(mode)}"])
        met: Counter[Pass] = Counter()

        def counting(first: Pass, later: Pass, met: Counter[Pass] = met) -> Loss:
            turns = itertools.chain([first], itertools.repeat(later))

            def loss(theta: Params) -> torch.Tensor:
                met.update([next(turns)])
                return torch.stack([p.square().sum() for p in theta.values()]).sum()

            return loss

        bench = Bench(model, chosen.settings, chosen.method.trained(model), 0, meta=True)
        bench.meta_gradient(chosen.settings.simulated[0], mode, counting)
        passes = outer_step(chosen.method, chosen.settings, meta=True, paths=32)
        assert met == {one: count for one, count in passes.items() if one.kind not in ("trained", "teacher")}


@pytest.mark.parametrize(
    ("overrides", "kept", "compared"),
    [
        (["diagnostics_every=0", "inner_horizon=none"], False, False),
        (["diagnostics_every=10", "inner_horizon=none"], True, True),
        (["diagnostics_every=0", "inner_horizon=100"], True, False),
    ],
)
def test_the_rehearsal_keeps_what_a_step_keeps(
    model: TextToImageModel, overrides: list[str], kept: bool, compared: bool
) -> None:
    """theta_M for a diagnosis and for a persistent attacker, the first-order adjoint for a diagnosis alone."""
    chosen = configure("uce", read_recipe("small"), ["meta_gradient=gradient-difference", *overrides])
    bench = Bench(model, chosen.settings, chosen.method.trained(model), 0, meta=True)
    found, start, goes_on = bench.meta_gradient(chosen.settings.simulated[0], GradientDifference(), bench.real)
    assert (bool(found.theta_final), found.first_order is not None) == (kept, compared)
    assert (start is None) == (goes_on is None) == (chosen.settings.inner_horizon is None)
    if start is not None and goes_on is not None:  # Sets of their own, of all that the attacker tunes.
        held = (bench.theta, found.theta_final, start, goes_on.displacement)
        for name in bench.tuned:
            assert len({params[name].data_ptr() for params in held}) == len(held)


def test_what_a_persistent_attacker_left_lasts(model: TextToImageModel) -> None:
    """Delta, of which a run without the meta objective and a defence have none; theta + Delta is of every second step.
    A measured prediction's peak comes on top of what lasts."""
    size = 4 * sum(p.numel() for p in model.unet.parameters())

    def bytes_of(method: str, horizon: str, meta: bool) -> tuple[int, int]:
        chosen = configure(method, read_recipe("small"), [])
        settings = chosen.settings.model_copy(update={"inner_horizon": None if horizon == "none" else int(horizon)})
        settings = settings.model_copy(update={"diagnostics_every": 1, "picture_batch": 1, "batch_size": 64})
        facts = facts_of(model, 1000, settings)
        return (
            lasting_bytes(chosen.method, facts, settings, meta=meta),
            counted_memory(chosen.method, facts, settings, meta=meta, defended=chosen.defended),
        )

    def added(method: str, meta: bool) -> list[int]:
        pairs = zip(bytes_of(method, "none", meta), bytes_of(method, "100", meta), strict=True)
        return [with_it - without for without, with_it in pairs]

    assert added("esd-u-1", True) == added("uce", True) == [size, 2 * size]
    assert added("esd-u-1", False) == added("uce", False) == added("resalign", False) == [0, 0]


@pytest.mark.parametrize(
    ("method", "meta", "overrides"),
    [
        ("esd-x-1", True, ["meta_gradient=gradient-difference", "precision=tf32"]),
        ("esd-x-1", True, ["meta_gradient=gradient-difference", "difference_precision=tf32"]),
        ("esd-x-1", True, ["meta_gradient=double-backward", "precision=tf32", "difference_precision=tf32"]),
        ("esd-x-1", True, ["meta_gradient=first-order", "precision=tf32"]),
        ("esd-x-1", True, ["meta_gradient=first-order"]),
        ("esd-x-1", False, ["precision=tf32"]),
    ],
)
def test_passes_are_measured_in_the_products_of_a_real_step(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, method: str, meta: bool, overrides: list[str]
) -> None:
    """What a GPU would multiply in at each call of the denoiser, by the number of pictures."""
    calls: Counter[tuple[int, str]] = Counter()
    predict, take_step = UNetModel.predict, Algorithm1.take_step

    def noted(self: UNetModel, theta: Params, x_t: torch.Tensor, *rest: Any) -> torch.Tensor:
        calls[len(x_t), torch.backends.cudnn.conv.fp32_precision] += 1  # type: ignore[attr-defined]
        return predict(self, theta, x_t, *rest)

    def alone(self: Algorithm1) -> Any:
        calls.clear()
        return take_step(self)

    monkeypatch.setattr(UNetModel, "predict", noted)
    monkeypatch.setattr(Algorithm1, "take_step", alone)
    overrides = ["steps=1", "forget_images=4", "retain_images=4", "bank_trajectories=2", "bank_steps=2", "batch_size=4",
                 "diagnostics_every=0", "retain_loss=denoising", *overrides]  # fmt: skip
    if meta:
        overrides += ["zeta_margin=none", "inner_steps=2", "inner_optimizer=sgd", "inner_horizon=none"]
    # Shared: a double backward does not read difference_precision, which is seen here to change nothing.
    erase(tiny_model, ["zebra"], method=method, meta=meta, overrides=overrides, shared_overrides=True)
    real = set(calls)

    model, chosen = load(tiny_model), configure(method, read_recipe("small"), overrides)
    bench = Bench(model, chosen.settings, chosen.method.trained(model), 0, meta=meta)
    calls.clear()
    for one in outer_step(chosen.method, chosen.settings, meta=meta, paths=32):
        bench.run_of(one)()
    assert set(calls) == real


def test_a_diagnosis_is_rehearsed_in_24_bits_and_a_difference_in_its_own(
    model: TextToImageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a measured peak has what either wants of a GPU; theta's passes are as ``precision`` says."""
    met: list[str] = []
    predict = UNetModel.predict

    def noted(self: UNetModel, *inputs: Any) -> torch.Tensor:
        met.append(torch.backends.cudnn.conv.fp32_precision)  # type: ignore[attr-defined]
        return predict(self, *inputs)

    monkeypatch.setattr(UNetModel, "predict", noted)
    overrides = ["difference_precision=tf32", "precision=tf32", "diagnostics_every=1", "inner_steps=1"]
    chosen = configure("uce", read_recipe("small"), ["meta_gradient=gradient-difference", *overrides])
    bench = Bench(model, chosen.settings, chosen.method.trained(model), 0, meta=True)
    [mode] = _modes(chosen.settings)
    turn = partial(bench.meta_gradient, chosen.settings.simulated[0], mode, bench.real)
    bench.rehearse({Pass("trained", 4, first_order=True): 1}, bench.outer_update(), turn)
    assert met == ["tf32"] * (1 + 1 + 2) + ["tf32"] + ["ieee"] * 2


@pytest.mark.skipif(not Meter("cpu").sees_memory, reason="memory is measured on Linux")
def test_peak_memory_is_what_was_there_at_once() -> None:
    """Of 64 MiB that go again and then 32."""

    def call() -> None:
        for size in (2**24, 2**23):
            torch.ones(size)

    assert Meter("cpu").peak(call) == pytest.approx(2**26, rel=0.1)
