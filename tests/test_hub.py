"""Models of the hub: what the commands fetch that messages tell, and what becomes of what the cache holds."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

from metaunlearn.bench.identity import pipeline_identity
from metaunlearn.cards import _licence_of
from metaunlearn.errors import UserError
from metaunlearn.fetching import (
    CARD,
    CONFIGURATION,
    HALF,
    PASSED_OVER,
    PIPELINE,
    SAMPLING_FILE,
    fetch_command,
    fetch_pipeline,
)
from metaunlearn.generation import Sampling, default_sampling, write_sampling
from metaunlearn.metrics.hub import FILES, Repository
from metaunlearn.metrics.safety import FETCH
from metaunlearn.models import loading
from metaunlearn.models.loading import load_pipeline
from tiny_models import NEW

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("command", "include", "exclude", "folder"),
    [
        (fetch_pipeline("some/model", folder="DIR"), PIPELINE, PASSED_OVER, "DIR"),
        (fetch_pipeline("some/model"), PIPELINE, PASSED_OVER, None),
        (fetch_pipeline("some/model", folder="DIR", half=True), HALF, PASSED_OVER, "DIR"),
        (fetch_command("some/model", CONFIGURATION, folder="DIR"), CONFIGURATION, None, "DIR"),
        (Repository.parse("some/model@main").download, FILES, None, None),
        (FETCH, ("safety_checker/*.json", "safety_checker/model.safetensors", "feature_extractor/*"), None, "DIR"),
    ],
)
def test_hubs_own_command_understands_what_is_told(
    command: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...] | None,
    folder: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        importlib.import_module("huggingface_hub.cli.download"),
        "snapshot_download",
        lambda **given: asked.update(given) or "there",
    )
    program, *words = shlex.split(command)
    assert program == "hf"
    importlib.import_module("huggingface_hub.cli.hf").app.main(args=words, standalone_mode=False)
    assert (asked["allow_patterns"], asked["ignore_patterns"]) == (list(include), exclude and list(exclude))
    assert asked["local_dir"] == folder


def test_a_revision_is_named_in_the_command() -> None:
    told = fetch_command("somebody/model", ["*.json"], exclude=["a/*"], revision="v1", folder="DIR")
    assert told == 'hf download somebody/model --revision v1 --include "*.json" --exclude "a/*" --local-dir DIR'


def cached(model: Path, name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``somebody/NAME`` in a cache of the hub's layout, and no hub; its snapshot."""

    class Nobody:
        def model_info(self, *_: Any, **__: Any) -> None:
            raise OSError("no route to host")

    snapshot = cache / f"models--somebody--{name}" / "snapshots" / COMMIT
    shutil.copytree(model, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("metaunlearn.models.loading.HfApi", Nobody)
    return snapshot


def test_a_cached_model_is_the_folder_that_it_was(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when its denoiser comes in shards; and a grid knows it by its commit."""
    snapshot = cached(tiny_model, "whole", tmp_path, monkeypatch)
    there = load_pipeline(tiny_model).unet
    shutil.rmtree(snapshot / "unet")
    there.save_pretrained(snapshot / "unet", max_shard_size="200KB")
    assert len(list((snapshot / "unet").glob("*.safetensors"))) > 1
    found = load_pipeline("somebody/whole").unet
    assert all(torch.equal(a, b) for a, b in zip(there.parameters(), found.parameters(), strict=True))
    assert pipeline_identity("somebody/whole") == f"somebody/whole@{COMMIT}"


@pytest.mark.parametrize("lacking", ["tokenizer/vocab.json", "unet/diffusion_pytorch_model.safetensors", "vae"])
def test_a_part_of_a_model_in_the_cache_is_not_taken_for_it(
    lacking: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = cached(tiny_model, "part", tmp_path, monkeypatch)
    (snapshot / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    shutil.rmtree(snapshot / lacking, ignore_errors=True)
    (snapshot / lacking).unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"not whole in the cache \(.*no route to host.*hf download somebody/part"):
        load_pipeline("somebody/part")


def test_what_is_told_fetches_weights_that_are_there_as_fp16_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two commands the second; and the first what is plain. Of either kind the model is whole."""
    (tmp_path / "none").mkdir()
    snapshot = cached(tmp_path / "none", "half", tmp_path / "cache", monkeypatch)
    with pytest.raises(UserError) as told:
        load_pipeline("somebody/half")
    plain, half = re.findall(r"hf download somebody/half[^;)]*", str(told.value))
    pipeline = NEW["sd1"]()
    for kind, options in (("plain", {}), ("half", {"variant": "fp16", "max_shard_size": "200KB"})):
        pipeline.save_pretrained(tmp_path / kind, **options)
    for command, there in ((plain, "plain"), (half, "half")):
        patterns = re.findall(r'--include "(.*?)"', command)
        shutil.rmtree(snapshot, ignore_errors=True)
        shutil.copytree(tmp_path / there, snapshot)
        for file in [file for file in snapshot.rglob("*") if file.is_file()]:
            if not any(fnmatch(file.relative_to(snapshot).as_posix(), pattern) for pattern in patterns):
                file.unlink()
        found = load_pipeline("somebody/half").unet
        assert all(torch.equal(a, b) for a, b in zip(pipeline.unet.parameters(), found.parameters(), strict=True))


@pytest.mark.parametrize("sampling", [Sampling(steps=7, guidance_scale=2.0), Sampling()])
def test_a_download_has_its_card_and_the_settings_that_it_draws_with(
    sampling: Sampling, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers fetches neither; a repository may lack both, as one with the usual settings does here."""
    hub, snapshot = tmp_path / "hub", tmp_path / "cache"
    shutil.copytree(tiny_model, hub)
    (hub / SAMPLING_FILE).unlink()
    write_sampling(hub, sampling)
    if sampling != Sampling():
        (hub / CARD).write_text("---\nlicense: openrail++\n---\n")
    files = [file.relative_to(hub).as_posix() for file in hub.rglob("*") if file.is_file()]

    class Hub:
        def model_info(self, *_: Any, **__: Any) -> Any:
            return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in files])

    def fetched(_: str, name: str) -> str:
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        return str(shutil.copy(hub / name, snapshot / name))

    def download(model: str, **_: Any) -> str:
        for name in files:
            if "/" in name or name == "model_index.json":
                fetched(model, name)
        return str(snapshot)

    monkeypatch.setattr(loading, "HfApi", Hub)
    monkeypatch.setattr(loading, "hf_hub_download", fetched)
    monkeypatch.setattr(loading.DiffusionPipeline, "download", download)
    index = json.loads((hub / "model_index.json").read_text())
    monkeypatch.setattr(loading.DiffusionPipeline, "load_config", lambda _: index)
    assert default_sampling(load_pipeline("somebody/new")) == sampling
    assert (snapshot / CARD).exists() == (hub / CARD).exists()


def test_each_component_is_downloaded_in_its_own_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain denoiser and autoencoder, a text encoder as fp16 only: diffusers' own rules say which files those are."""
    pipeline, model, served = NEW["sd1"](), tmp_path / "model", tmp_path / "served"
    pipeline.save_pretrained(model)
    pipeline.save_pretrained(model, variant="fp16")
    (model / "text_encoder" / "model.safetensors").unlink()
    files = [file.relative_to(model).as_posix() for file in model.rglob("*") if file.is_file()]

    def info(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files], sha=COMMIT)

    def serve(name: str) -> str:
        (served / name).parent.mkdir(parents=True, exist_ok=True)
        return str(shutil.copy(model / name, served / name))

    def snapshot(*_: Any, allow_patterns: list[str], ignore_patterns: list[str], **__: Any) -> str:
        for file in filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            serve(file)
        return str(served)

    monkeypatch.setattr("metaunlearn.models.loading.HfApi", lambda: SimpleNamespace(model_info=info))
    monkeypatch.setattr("metaunlearn.models.loading.hf_hub_download", lambda *_: None)
    monkeypatch.setattr("diffusers.configuration_utils.hf_hub_download", lambda _, filename, **__: serve(filename))
    diffusers_own = "diffusers.pipelines.pipeline_utils"
    monkeypatch.setattr(f"{diffusers_own}.model_info", info)
    monkeypatch.setattr(f"{diffusers_own}.hf_hub_download", lambda _, name, **__: serve(name))
    monkeypatch.setattr(f"{diffusers_own}.snapshot_download", snapshot)
    found = load_pipeline("somebody/mixed").unet
    assert all(torch.equal(a, b) for a, b in zip(pipeline.unet.parameters(), found.parameters(), strict=True))
    assert {file.relative_to(served).as_posix() for file in served.rglob("*.safetensors")} == {
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.fp16.safetensors",
    }


def test_the_licence_of_a_cached_model_goes_on(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = cached(tiny_model, "licensed", tmp_path, monkeypatch)
    assert _licence_of("somebody/licensed") is None
    (snapshot / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n# A model\n")
    assert _licence_of("somebody/licensed") == "creativeml-openrail-m"
