"""What makes large models fit: the same gradients with checkpointing, nearly the same in half precision."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import Call, read_lines
from meta_problems import error
from metaunlearn import doctor, erasing
from metaunlearn.conditioning import Conditioning
from metaunlearn.config import EraseSettings
from metaunlearn.diffusion import Batch, denoising_loss_of
from metaunlearn.erasing import erase
from metaunlearn.errors import UserError
from metaunlearn.generation import Sampling, write_sampling
from metaunlearn.meta.hypergradient import DoubleBackward, MetaProblem
from metaunlearn.meta.inner import InnerLoop
from metaunlearn.meta.outer import outer_optimizer
from metaunlearn.models import StableDiffusionXL, TextToImageModel, load
from metaunlearn.models.memory import checkpointing, set_aside
from metaunlearn.models.precision import in_precision, teachers_answer
from metaunlearn.models.unet_model import UNetModel
from metaunlearn.parameters import Params, value_and_gradient
from metaunlearn.recipe import read_recipe
from metaunlearn.settings import resolve
from tiny_models import new_sdxl

UNET = "unet/diffusion_pytorch_model.safetensors"
FAST = (
    "steps=2", "forget_images=2", "retain_images=2", "bank_trajectories=2", "bank_steps=2", "batch_size=2",
    "meta_gradient=double-backward",
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> TextToImageModel:
    return StableDiffusionXL(new_sdxl())


def batch(model: TextToImageModel, dtype: torch.dtype = torch.float32, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    x_0, eps = (torch.randn(2, *model.latent_shape, generator=g).to(dtype) for _ in range(2))
    cond = model.encode_prompts(["a fox", "an owl"]).to(dtype)
    return Batch(x_0=x_0, cond=cond, eps=eps, t=torch.tensor([100, 700]))


def elsewhere(model: TextToImageModel, dtype: torch.dtype) -> Params:
    """Parameters that are not the module's own."""
    g = torch.Generator().manual_seed(1)
    return {name: (p + 0.1 * torch.randn(p.shape, generator=g)).to(dtype) for name, p in model.parameters().items()}


def test_checkpointing_gives_the_gradient_at_the_parameters_that_are_passed_in(model: TextToImageModel) -> None:
    """float64, at parameters that are not the module's own. diffusers' ready-made checkpointing, which recomputes with
    the module's own, is off there: if it were not, there would be nothing to test."""
    model.unet.double()
    try:
        theta = elsewhere(model, torch.float64)
        loss = denoising_loss_of(model, batch(model, torch.float64))
        expected = value_and_gradient(loss, theta)
        with checkpointing(model.unet):
            found = value_and_gradient(loss, theta)
        assert torch.equal(found.value, expected.value)
        assert error(found.gradient, expected.gradient) < 1e-14
        model.unet.requires_grad_().enable_gradient_checkpointing()
        wrong = value_and_gradient(loss, theta).gradient
        assert error(wrong, expected.gradient) > 1e-3
    finally:
        model.unet.requires_grad_(False).disable_gradient_checkpointing()
        model.unet.float()


def test_second_derivatives_pass_through_checkpointing(model: TextToImageModel) -> None:
    model.unet.double()
    try:
        theta = elsewhere(model, torch.float64)
        losses = [denoising_loss_of(model, batch(model, torch.float64, seed)) for seed in range(2)]
        problem = MetaProblem(
            inner_losses=losses[:1], inner=InnerLoop(learning_rate=0.05), outer=lambda theta: -losses[1](theta)
        )
        expected = DoubleBackward()(problem, theta).gradient
        with checkpointing(model.unet):
            found = DoubleBackward()(problem, theta).gradient
        assert error(found, expected) < 1e-12
    finally:
        model.unet.float()


def test_checkpointing_keeps_less_and_ends(model: TextToImageModel) -> None:
    def kept() -> int:
        total = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        theta = {name: p.requires_grad_() for name, p in model.parameters().items()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            denoising_loss_of(model, batch(model))(theta)
        return total

    before = kept()
    with checkpointing(model.unet):
        inside = kept()
    assert inside < before / 2
    assert kept() == before


@pytest.mark.parametrize(("precision", "digits"), [("bf16", 0.05), ("fp16", 0.02)])
def test_half_precision_is_near_and_no_gradient_vanishes(
    model: TextToImageModel, precision: Any, digits: float
) -> None:
    """Relative error about 2^-8 and 2^-11 a product. The loss is divided by 1e5, as a mean over the latents of a large
    picture divides it: without scaling most of the float16 gradients would be zero."""
    theta, small = elsewhere(model, torch.float32), batch(model)
    half = model.in_precision(precision)
    expected = value_and_gradient(lambda theta: denoising_loss_of(model, small)(theta) / 1e5, theta)
    found = value_and_gradient(lambda theta: denoising_loss_of(half, small)(theta) / 1e5, theta)
    assert 1e-6 < error(found.gradient, expected.gradient) < digits
    assert {p.dtype for p in found.gradient.values()} == {torch.float32}
    vanished = sum(int(((found.gradient[n] == 0) & (p != 0)).sum()) for n, p in expected.gradient.items())
    assert vanished < 0.05 * sum(p.numel() for p in expected.gradient.values())
    assert model.in_precision("float32") is model
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(("precision", "digits"), [("bf16", 0.05), ("fp16", 0.02)])
def test_half_precision_is_near_in_what_else_has_a_gradient(
    model: TextToImageModel, precision: Any, digits: float
) -> None:
    """The text encoder, new words and the latents; tolerances as of the parameters, and the gradient is float32."""
    small = batch(model)
    whole = small.cond.tensors()
    inputs = {"x_t": small.x_0, "tokens": whole["tokens"], "pooled": whole["pooled"]}

    def gradients(half: TextToImageModel) -> Params:
        at = {name: x.clone().requires_grad_() for name, x in inputs.items()}
        cond = Conditioning.of_tensors(whole | at)
        loss = (half.predict(model.parameters(), at["x_t"], small.t, cond) - small.eps).square().mean()
        return dict(zip(at, torch.autograd.grad(loss, list(at.values())), strict=True))

    expected, found = gradients(model), gradients(model.in_precision(precision))
    for name in inputs:
        assert found[name].dtype == torch.float32
        assert 0 < error({name: found[name]}, {name: expected[name]}) < digits, name


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_teacher_in_half_precision(model: TextToImageModel, precision: Any) -> None:
    theta, asked = model.parameters(), batch(model)
    half = in_precision(theta, precision)
    assert {p.dtype.itemsize for p in half.values()} == {2}
    answer = teachers_answer(model.predict, half, asked.x_0, asked.t, asked.cond)
    expected = model.predict(theta, asked.x_0, asked.t, asked.cond)
    assert answer.dtype == torch.float32
    assert 0 < (answer - expected).norm() / expected.norm() < 0.05


@pytest.fixture(scope="module")
def plain_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "run"
    erase(tiny_model, ["zebra"], out=out, overrides=FAST)
    return out


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        (("gradient_checkpointing=true",), 1e-6),
        (("precision=bf16",), None),
        (("teacher_precision=bf16",), None),
        (("precision=fp16", "meta_gradient=first-order"), None),
    ],
    ids=str,
)
def test_runs_with_it(
    tiny_model: Path, plain_run: Path, tmp_path: Path, options: tuple[str, ...], tolerance: float | None
) -> None:
    """Checkpointing changes nothing; half precision changes the weights, and only slightly: both take steps of at most
    the learning rate. The result's pipeline is as it was."""
    result = erase(tiny_model, ["zebra"], out=tmp_path / "it", overrides=[*FAST, *options])
    before, after = load_file(plain_run / UNET), load_file(tmp_path / "it" / UNET)
    distance = max((before[name] - after[name]).abs().max().item() for name in before)
    assert not result.pipeline.unet.is_gradient_checkpointing
    if tolerance is not None:
        assert distance <= tolerance
    else:
        assert 0 < distance < 4.1 * result.settings.learning_rate


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ((), ["ieee", "none"]),
        (("precision=tf32",), ["ieee", "none", "tf32"]),
        (("difference_precision=tf32",), ["none", "tf32"]),
        (("precision=tf32", "difference_precision=tf32"), ["none", "tf32"]),
        (("precision=tf32", "difference_precision=tf32", "diagnostics_every=1"), ["ieee", "none", "tf32"]),
        (("precision=tf32", "meta_gradient=double-backward"), ["ieee", "none", "tf32"]),
    ],
    ids=str,
)
def test_tf32_is_on_where_it_was_asked_for(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], seen: list[str]
) -> None:
    """Of the passes at theta, and of the gradient difference's; sampling paths are drawn as torch has it, and a double
    backward and a diagnosis have none."""
    found = set()
    predict = UNetModel._predict

    def noted(self: UNetModel, *inputs: Any) -> torch.Tensor:
        found.add(torch.backends.cuda.matmul.fp32_precision)
        return predict(self, *inputs)

    monkeypatch.setattr(UNetModel, "_predict", noted)
    erase(
        tiny_model,
        ["zebra"],
        out=tmp_path / "it",
        overrides=[*FAST, "meta_gradient=gradient-difference", "diagnostics_every=0", *options],
    )
    assert sorted(found) == seen
    assert torch.backends.cuda.matmul.fp32_precision == "none"


def test_it_lives_with_micro_batches_averages_host_memory_and_diagnoses(tmp_path: Path) -> None:
    """XL, everything on: with checkpointing the same weights and, but for rounding, the same log."""
    more = ("accumulation=2", "ema_decay=0.5", "inner_store=host", "diagnostics_every=1", "steps=1")
    new_sdxl().save_pretrained(tmp_path / "xl", safe_serialization=True)
    write_sampling(tmp_path / "xl", Sampling(steps=3, guidance_scale=2.0))
    outs = [tmp_path / "off", tmp_path / "on"]
    for out, on in zip(outs, ("false", "true"), strict=True):
        erase(tmp_path / "xl", ["zebra"], out=out, overrides=[*FAST, *more, f"gradient_checkpointing={on}"])
    before, after = (load_file(out / UNET) for out in outs)
    assert max((before[name] - after[name]).abs().max().item() for name in before) <= 1e-6
    found, expected = (diagnoses(out) for out in reversed(outs))
    assert len(found) == 1
    for one, other in zip(found, expected, strict=True):
        assert one["orthogonal"] == pytest.approx(other["orthogonal"], rel=1e-3)
        assert one["first_order"]["relative_error"] == pytest.approx(other["first_order"]["relative_error"], rel=1e-3)


def test_a_diagnosis_in_half_precision_compares_with_float32(tiny_model: Path, tmp_path: Path) -> None:
    """What a first-order run in bfloat16 is told to be off by: its own gradient's 3 digits beside the error of first
    order, which is large here. An exact meta-gradient by differences of bfloat16 gradients would be noise."""
    more = (
        "steps=1", "meta_gradient=first-order", "diagnostics_every=1", "diagnostics_exact=gradient-difference",
        "inner_optimizer=sgd", "inner_learning_rate=0.1",
    )  # fmt: skip
    errors = []
    for precision in ("float32", "bf16"):
        erase(tiny_model, ["zebra"], out=tmp_path / precision, overrides=[*FAST, *more, f"precision={precision}"])
        errors.append(diagnoses(tmp_path / precision)[0]["first_order"]["relative_error"])
    assert errors[0] > 0.01
    assert errors[1] == pytest.approx(errors[0], abs=0.05)
    assert errors[1] != errors[0]


def diagnoses(run: Path) -> list[dict[str, Any]]:
    return [line["diagnostics"] for line in read_lines(run / "log.jsonl")]


def test_doctor_reflects_it(tiny_model: Path) -> None:
    once = ["retain_loss=denoising", "zeta_margin=none"]  # Neither takes passes without a gradient.
    plain = doctor.estimate(tiny_model, overrides=once, speed=1e9)
    checked = doctor.estimate(tiny_model, overrides=[*once, "gradient_checkpointing=true"], speed=1e9)
    assert checked.seconds_per_step == pytest.approx(plain.seconds_per_step * 4 / 3)
    assert checked.memory_bytes < plain.memory_bytes
    eight = doctor.estimate(tiny_model, overrides=[*once, "outer_optimizer=adamw-8bit"], speed=1e9)
    assert plain.memory_bytes - eight.memory_bytes == pytest.approx(1.5 * 4 * plain.trained_parameters, abs=4)
    assert doctor.forward_cost(load(tiny_model))[0] > 0


def test_eight_bits_need_a_package(call: Call, tiny_model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    found = call(
        *("erase", tiny_model, "--concept", "a fox", "--set", "outer_optimizer=adamw-8bit", "--out", tmp_path / "out")
    )
    assert found.code == 2
    assert "metaunlearn[8bit]" in found.err
    assert not (tmp_path / "out").exists()


def test_eight_bits_get_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(optim=SimpleNamespace(AdamW8bit=lambda parameters, **options: (parameters, options)))
    monkeypatch.setitem(sys.modules, "bitsandbytes", fake)
    settings = resolve(EraseSettings, read_recipe("small").erase, ["outer_optimizer=adamw-8bit", "weight_decay=0.3"])
    parameters = [torch.zeros(2)]
    found: Any = outer_optimizer(parameters, settings)
    assert found == (parameters, {"lr": settings.learning_rate, "weight_decay": 0.3})


def test_unknown_precisions_are_refused(tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"precision = 'fp8'"):
        erase(tiny_model, ["zebra"], overrides=[*FAST, "precision=fp8"])


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("esd-x-1", ("gradient_checkpointing=true", "diagnostics_every=1", "retain_loss=distillation")),
        ("sdd", ("bank_refresh=1", "precision=bf16", "lipschitz_weight=1", "sharpness_radius=0.1")),
        ("uce", ("heal_steps=1",)),
        ("imma", ("base_set=steps=1,bank_trajectories=2,bank_steps=2,batch_size=2",)),
        ("resalign", ()),
    ],
)
def test_no_step_reads_the_pipelines_own_denoiser(
    tiny_model: Path, method: str, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a card it is on the host while theta moves; here it has no numbers at all, and the result is the same."""
    unread = {"imma": ("bank_", "meta_gradient"), "resalign": ("bank_",)}.get(method, ())
    overrides = [*(setting for setting in FAST if not setting.startswith(unread)), *more]
    options: dict[str, Any] = {"method": method, "overrides": overrides, "shared_overrides": True}
    plain = erase(tiny_model, ["zebra"], **options).pipeline.unet.state_dict()
    closed = 0

    @contextmanager
    def gone(unet: torch.nn.Module, device: torch.device) -> Iterator[None]:
        nonlocal closed
        unet.to("meta")
        yield
        unet.to_empty(device=device)
        closed += 1

    monkeypatch.setattr(erasing, "set_aside", gone)
    found = erase(tiny_model, ["zebra"], **options).pipeline.unet.state_dict()
    assert closed == (2 if method == "imma" else 1)
    assert plain.keys() == found.keys()
    assert all(torch.equal(p, found[name]) for name, p in plain.items())


def test_what_is_set_aside_comes_back() -> None:
    """To whatever device the model is on, where copies of theta are made all the while; on the CPU nothing moves."""
    model = StableDiffusionXL(new_sdxl())
    with set_aside(model.unet, torch.device("cpu")):
        before = [p.data_ptr() for p in model.unet.parameters()]
    assert [p.data_ptr() for p in model.unet.parameters()] == before
    model.device = torch.device("meta")
    with set_aside(model.unet, model.device):
        assert {p.device.type for p in model.unet.parameters()} == {"cpu"}
        assert {p.device.type for p in model.parameters().values()} == {"meta"}
    assert {p.device.type for p in model.unet.parameters()} == {"meta"}
