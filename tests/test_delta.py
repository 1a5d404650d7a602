"""The weight delta: bit for bit, for every float; its hashes are checked."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from conftest import Call
from metaunlearn import delta
from metaunlearn.delta import DELTA_FILE, apply_delta, bit_difference, make_delta, moved_bits
from metaunlearn.erasing import erase
from metaunlearn.errors import RunError, UserError
from metaunlearn.models import TextToImageModel, load, load_pipeline
from metaunlearn.parameters import digest
from tiny_models import new_sd1, new_sdxl

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def erased(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with --delta; only keys and values of cross-attention move."""
    out = tmp_path_factory.mktemp("erased") / "run"
    erase(tiny_model, ["zebra"], method="uce", meta=False, out=out, delta=True)
    return out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bits_go_around_where_floats_do_not(dtype: torch.dtype) -> None:
    """Numbers of all sizes, both zeros, infinities; in floats a + (b - a) misses b."""
    g = torch.Generator().manual_seed(0)
    size = 10.0 ** torch.randint(-4, 4, (1000,), generator=g)
    a = (torch.randn(1000, generator=g, dtype=torch.float64) * size).to(dtype)
    b = torch.randn(1000, generator=g, dtype=torch.float64).to(dtype)
    b[:4] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf])
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[b.element_size()]
    again = moved_bits(a, bit_difference(a, b))
    assert again.dtype == dtype
    assert torch.equal(again.view(integers), b.view(integers))
    assert not torch.equal(a[4:] + (b[4:] - a[4:]), b[4:])


def test_delta_holds_what_changed_and_gives_the_erased_model(tiny_model: Path, erased: Path, tmp_path: Path) -> None:
    before, after = load_file(tiny_model / UNET), load_file(erased / UNET)
    moved = {f"unet.{name}" for name in before if not torch.equal(before[name], after[name])}
    assert set(load_file(erased / DELTA_FILE)) == moved
    summary = apply_delta(tiny_model, erased / DELTA_FILE, tmp_path / "applied")
    assert (tmp_path / "applied" / UNET).read_bytes() == (erased / UNET).read_bytes()
    assert summary["result"] == {"unet": digest(load(erased).parameters())}
    assert json.loads((tmp_path / "applied" / "run.json").read_text())["status"] == "complete"


def test_another_base_is_refused(erased: Path, tmp_path: Path) -> None:
    """One number of one tensor, in its last bit."""
    base = new_sd1()
    weight = base.unet.conv_in.bias
    weight.data[0] = torch.nextafter(weight.data[0], torch.tensor(torch.inf))
    with pytest.raises(UserError, match=r"the base's unet has SHA-256"):
        apply_delta(base, erased / DELTA_FILE, tmp_path / "applied")
    assert not (tmp_path / "applied").exists()


def test_what_a_delta_leaves_as_it_is_must_be_the_bases_too(tiny_model: Path, erased: Path, tmp_path: Path) -> None:
    """Another autoencoder, vocabulary or noise schedule draws other pictures; another sampler is the user's choice."""

    def refused(component: str, base: Any) -> None:
        with pytest.raises(UserError, match=f"the base's {component} has SHA-256"):
            apply_delta(base, erased / DELTA_FILE, tmp_path / "applied")
        assert not (tmp_path / "applied").exists()

    for component in ("vae", "text_encoder"):
        base = new_sd1()
        next(getattr(base, component).parameters()).data += 1
        refused(component, base)
    base = new_sd1()
    base.tokenizer.model_max_length = 20
    refused("tokenizer", base)
    base = new_sd1()
    base.scheduler = DDIMScheduler.from_config(base.scheduler.config, beta_end=0.03)
    refused("scheduler", base)
    with pytest.raises(UserError, match="differ in scheduler, which has no weights"):
        make_delta(base, erased, tmp_path / "delta.safetensors")
    base = new_sd1()
    base.scheduler = EulerDiscreteScheduler.from_config(base.scheduler.config)
    apply_delta(base, erased / DELTA_FILE, tmp_path / "applied")


def test_a_delta_of_an_earlier_version_names_what_it_changes(tiny_model: Path, erased: Path, tmp_path: Path) -> None:
    with safe_open(erased / DELTA_FILE, framework="pt") as file:
        told = json.loads(file.metadata()[delta.METADATA])
    assert set(told.pop("unchanged")) == {"vae", "text_encoder", "tokenizer", "scheduler"}
    save_file(load_file(erased / DELTA_FILE), tmp_path / "old.safetensors", {delta.METADATA: json.dumps(told)})
    apply_delta(tiny_model, tmp_path / "old.safetensors", tmp_path / "applied")
    assert (tmp_path / "applied" / UNET).read_bytes() == (erased / UNET).read_bytes()
    other = new_sd1()
    other.vae.decoder.conv_in.bias.data += 1
    with pytest.raises(UserError, match=r"asked for differently \(unchanged\)"):
        apply_delta(other, tmp_path / "old.safetensors", tmp_path / "applied")


def test_a_damaged_delta_is_noticed(tiny_model: Path, erased: Path, tmp_path: Path) -> None:
    with safe_open(erased / DELTA_FILE, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(erased / DELTA_FILE)
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, tmp_path / "damaged.safetensors", metadata)
    with pytest.raises(RunError, match="damaged"):
        apply_delta(tiny_model, tmp_path / "damaged.safetensors", tmp_path / "applied")
    assert not (tmp_path / "applied").exists()
    save_file(tensors, tmp_path / "plain.safetensors")
    with pytest.raises(UserError, match="no delta of this version"):
        apply_delta(tiny_model, tmp_path / "plain.safetensors", tmp_path / "other")


def test_an_apply_that_broke_off_is_done_by_the_same_command(
    call: Call, tiny_model: Path, erased: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its disk was full; once complete the folder stays, and takes no other delta."""
    out, save = tmp_path / "applied", delta.save_pipeline

    def full(model: TextToImageModel, folder: Path) -> None:
        save(model, folder)
        (folder / UNET).unlink()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(delta, "save_pipeline", full)
        assert call("apply", tiny_model, erased / DELTA_FILE, "--out", out).code != 0
    assert json.loads((out / "run.json").read_text())["status"] == "running"
    assert call("apply", tiny_model, erased / DELTA_FILE, "--out", out).code == 0
    assert (out / UNET).read_bytes() == (erased / UNET).read_bytes()
    record = (out / "run.json").read_text()
    assert json.loads(record)["status"] == "complete"
    assert call("apply", tiny_model, erased / DELTA_FILE, "--out", out).code == 0
    assert (out / "run.json").read_text() == record
    make_delta(erased, tiny_model, tmp_path / "back.safetensors")
    found = call("apply", erased, tmp_path / "back.safetensors", "--out", out)
    assert found.code == 2
    assert "asked for differently" in found.err
    other = new_sd1()
    other.vae.decoder.conv_in.bias.data += 1  # Its denoiser is the one that was erased from.
    with pytest.raises(UserError, match=r"the base's vae has SHA-256"):
        apply_delta(other, erased / DELTA_FILE, out)
    assert (out / UNET).read_bytes() == (erased / UNET).read_bytes()


def test_text_encoders_are_part_of_it_and_the_caller_keeps_his(tmp_path: Path) -> None:
    """A method may train a text encoder; the given base pipeline stays as it is."""
    base, changed = new_sdxl(), new_sdxl()
    with torch.no_grad():
        changed.text_encoder_2.text_projection.weight += 1e-3
    summary = make_delta(base, changed, tmp_path / "delta.safetensors")
    assert list(summary["base"]) == ["text_encoder_2"]
    apply_delta(base, tmp_path / "delta.safetensors", tmp_path / "applied")
    applied = load_pipeline(tmp_path / "applied").text_encoder_2.text_projection.weight
    assert torch.equal(applied, changed.text_encoder_2.text_projection.weight)
    assert not torch.equal(applied, base.text_encoder_2.text_projection.weight)


def test_command_line(call: Call, tiny_model: Path, erased: Path, tmp_path: Path) -> None:
    file = tmp_path / "delta.safetensors"
    assert call("delta", tiny_model, erased, "--out", file).code == 0
    assert file.read_bytes() == (erased / DELTA_FILE).read_bytes()
    assert call("apply", tiny_model, file, "--out", tmp_path / "applied").code == 0
    assert (tmp_path / "applied" / UNET).read_bytes() == (erased / UNET).read_bytes()
    for arguments, says in (
        (("delta", tiny_model, erased, "--out", file), "exists already"),
        (("delta", tiny_model, tiny_model, "--out", tmp_path / "x.safetensors"), "same weights"),
        (("delta", tiny_model, "canvas", "--out", tmp_path / "x.safetensors"), "same architecture"),
        (("delta", tiny_model, erased, "--out", tmp_path / "x.bin"), "--out FILE"),
        (("apply", tiny_model, tmp_path / "no", "--out", tmp_path / "x"), "no delta"),
        (("apply", erased, file, "--out", tmp_path / "x"), "SHA-256"),
    ):
        found = call(*arguments)
        assert found.code == 2
        assert says in found.err
    assert not (tmp_path / "x").exists()


def test_a_pipeline_in_half_precision_stays_one(tmp_path: Path) -> None:
    """All of it, though the work is done in float32; and its delta is to the float32 of its numbers."""
    base = new_sd1().to(torch.float16)
    result = erase(base, ["zebra"], method="uce", meta=False, out=tmp_path / "run", delta=True)
    parts = [base.unet, base.vae, base.text_encoder]
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float16}
    assert result.pipeline.text_encoder.dtype == torch.float32
    apply_delta(base, tmp_path / "run" / DELTA_FILE, tmp_path / "applied")
    assert (tmp_path / "applied" / UNET).read_bytes() == (tmp_path / "run" / UNET).read_bytes()
    mixed = new_sd1()
    mixed.vae.half()
    assert {part.dtype for part in (load(mixed).pipeline.unet, load(mixed).pipeline.vae)} == {torch.float32}


def test_from_python_paths_may_be_texts_and_models_what_was_returned(tmp_path: Path) -> None:
    base = new_sd1()
    result = erase(base, ["zebra"], method="uce", meta=False)
    made = make_delta(base, result, str(tmp_path / "zebra.safetensors"))
    adapter = load(new_sd1())
    applied = apply_delta(adapter, str(tmp_path / "zebra.safetensors"), str(tmp_path / "model"))
    assert applied["result"] == made["result"]
    assert made["base"] == {"unet": digest(adapter.parameters())}


def test_a_zero_that_changed_its_sign_has_changed(tmp_path: Path) -> None:
    """To comparisons of floats 0 and -0 are the same, and to the result's hash they are not."""
    base, erased = new_sd1(), new_sd1()
    base.unet.conv_in.bias.data.zero_()
    erased.unet.conv_in.bias.data.copy_(torch.tensor(-0.0))
    erased.unet.conv_out.bias.data.add_(1)
    assert make_delta(base, erased, tmp_path / "d.safetensors")["tensors"] == 2
    summary = apply_delta(base, tmp_path / "d.safetensors", tmp_path / "applied")
    assert summary["result"]["unet"] == digest(dict(erased.unet.named_parameters()))
    assert load(tmp_path / "applied").parameters()["conv_in.bias"].signbit().all()
