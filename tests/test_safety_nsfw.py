"""The unsafe score against the checker's own rule written out, the NSFW score against its head written out."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from colours import ColourJudge
from conftest import Call
from metaunlearn.checkpoint import load_tensors, save_tensors
from metaunlearn.converting import convert
from metaunlearn.errors import UserError
from metaunlearn.metrics import safety
from metaunlearn.metrics.nsfw import ARCHITECTURES, KIND, NsfwHead, nsfw_score
from metaunlearn.metrics.safety import SafetyChecker, unsafe_score
from metaunlearn.pickles import PUBLISHED
from tiny_judges import MEAN, STD, head_tensors, new_checker, save_checker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checker(tmp_path_factory.mktemp("checker"))


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def flagged_slowly(pictures: Tensor) -> list[bool]:
    """Flagged when a cosine is above its threshold, which is lower by 0.01 once a special one is; to three decimals."""
    checker = new_checker()
    mean, std = (torch.tensor(row).view(1, 3, 1, 1) for row in (MEAN, STD))
    with torch.no_grad():
        embedded = checker.visual_projection(checker.vision_model((pictures - mean) / std)[1])
    flags = []
    for row in embedded:
        care = [float(torch.cosine_similarity(row, c, dim=0)) - 0.6 for c in checker.special_care_embeds]
        slack = 0.01 if any(round(value, 3) > 0 for value in care) else 0.0
        bad = [float(torch.cosine_similarity(row, c, dim=0)) - 0.7 + slack for c in checker.concept_embeds]
        flags.append(any(round(value, 3) > 0 for value in bad))
    return flags


def test_unsafe_score_is_what_the_checker_flags(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    checker = SafetyChecker.load(folder)
    pictures = torch.cat([images(20), 1 - images(20).square(), torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16)])
    flags = checker.flags(pictures)
    assert flags == flagged_slowly(pictures)
    assert 0 < sum(flags) < len(flags), "a test that only sees one verdict"
    assert flags == [flag for image in pictures for flag in checker.flags(image[None])]
    score = unsafe_score(flags, checker)
    assert score.value == pytest.approx(100 * sum(flags) / len(flags))
    assert (score.protocol["judge_weights"], len(checker.fingerprint)) == (checker.fingerprint, 64)
    assert "NSFW content" not in caplog.text
    with pytest.raises(UserError, match="No score from no data"):
        unsafe_score([], checker)


def test_a_checker_s_own_folder_will_do(folder: Path, tmp_path: Path) -> None:
    own = folder / "safety_checker"
    with pytest.raises(UserError, match=r"no preprocessor_config.json"):
        SafetyChecker.load(own)
    with pytest.raises(UserError, match=r"--metrics unsafe:DIR.*hf download"):
        SafetyChecker.load(tmp_path)


def test_offline_it_says_how_to_fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import HfApi

    def unreachable(self: HfApi, *arguments: object, **options: object) -> None:
        raise OSError("no network")

    def absent(*arguments: object, **options: object) -> str:
        raise OSError("not in the cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", absent)
    monkeypatch.setattr(HfApi, "model_info", unreachable)
    with pytest.raises(UserError) as caught:
        SafetyChecker.load()
    assert safety.FETCH in str(caught.value)
    assert safety.REVISION in safety.FETCH


def test_cached_checker_is_read_without_asking_the_hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    asked: list[dict[str, object]] = []

    def cached(repository: str, **options: object) -> str:
        asked.append(options)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", cached)
    assert SafetyChecker.load().name == "CompVis/stable-diffusion-v1-4@133a221"
    assert [(options["revision"], options["local_files_only"]) for options in asked] == [(safety.REVISION, True)]


# --- NSFW


def test_the_l14_head_by_hand() -> None:
    """Unit length, standardise, three layers with ReLU, one without, sigmoid."""
    tensors = {key: value.double() for key, value in head_tensors().items()}
    features = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
    x = features.double() / features.double().norm(dim=1, keepdim=True)
    x = (x - tensors["norm.mean"]) / tensors["norm.variance"].sqrt()
    for number in (1, 2, 3, 4):
        x = x @ tensors[f"linear_{number}.weight"].T + tensors[f"linear_{number}.bias"]
        if number < 4:
            x = x.clamp(min=0)
    expected = 1 / (1 + (-x[:, 0]).exp())
    head = NsfwHead("laion-nsfw-l14", head_tensors(), name="tiny")
    assert torch.allclose(head(features).double(), expected, atol=1e-6)
    assert torch.allclose(head(7 * features), head(features), atol=1e-6)
    score = nsfw_score(head(features), head, ColourJudge())
    assert score.value == pytest.approx(float(expected.mean()), abs=1e-6)
    assert (score.n, score.protocol["head"]) == (5, "laion-nsfw-l14")


def test_the_h14_head_has_no_relu_before_its_last_layer_and_no_sigmoid() -> None:
    """With the 16 inputs of the last layer all -1 and its weights 1, a ReLU would give 0 and a sigmoid at least 0."""
    layers = ARCHITECTURES["laion-nsfw-h14"].layers
    widths = [2, 3, 3, 3, 3, 3, 16, 1]
    tensors = {}
    for layer, before, after in zip(layers, widths[:-1], widths[1:], strict=True):
        tensors[f"{layer}.weight"], tensors[f"{layer}.bias"] = torch.zeros(after, before), torch.zeros(after)
    tensors["layers.15.bias"] -= 1
    tensors["layers.16.weight"] += 1
    head = NsfwHead("laion-nsfw-h14", tensors, name="tiny")
    assert head(torch.ones(1, 2)).tolist() == [-16.0]


def test_convert_reads_weights_alone_and_writes_safetensors(call: Call, tmp_path: Path) -> None:
    torch.save(head_tensors(), tmp_path / "head.pth")
    outcome = call(
        "convert", "laion-nsfw-l14", tmp_path / "head.pth", "--out", tmp_path / "h.safetensors", "--json", "--own"
    )
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["clip"] == "openai/clip-vit-large-patch14"
    tensors, metadata = load_tensors(tmp_path / "h.safetensors")
    assert metadata == {KIND: "laion-nsfw-l14"}
    assert all(torch.equal(tensors[key], value) for key, value in head_tensors().items())
    assert NsfwHead.load(tmp_path / "h.safetensors").width == 3


def test_weights_in_half_precision_are_converted_to_single(tmp_path: Path) -> None:
    halves = {key: value.half() for key, value in head_tensors().items()}
    torch.save(halves, tmp_path / "head.pth")
    convert("laion-nsfw-l14", tmp_path / "head.pth", tmp_path / "h.safetensors", published=False)
    found, _ = load_tensors(tmp_path / "h.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert all(torch.equal(found[key], value.float()) for key, value in halves.items())


class Harmful:
    """What a pickle must not be able to make."""


def test_what_convert_refuses(tmp_path: Path) -> None:
    head = tmp_path / "head.pth"
    torch.save(head_tensors(), head)
    out = tmp_path / "h.safetensors"
    own = functools.partial(convert, published=False)
    with pytest.raises(UserError, match="Did you mean 'laion-nsfw-l14'"):
        own("laion-nsfw-114", head, out)
    with pytest.raises(UserError, match="do not exist"):
        own("laion-nsfw-l14", tmp_path / "none.pth", out)
    with pytest.raises(UserError, match="must end in"):
        own("laion-nsfw-l14", head, tmp_path / "h.bin")
    with pytest.raises(UserError, match=r"is no laion-nsfw-h14: it lacks layers.0.bias"):
        own("laion-nsfw-h14", head, out)
    torch.save({**head_tensors(), "linear_2.weight": torch.zeros(6, 9)}, head)
    with pytest.raises(UserError, match="do not follow"):
        own("laion-nsfw-l14", head, out)
    torch.save([1, 2], head)
    with pytest.raises(UserError, match="holds a list"):
        own("laion-nsfw-l14", head, out)
    torch.save(Harmful(), head)
    with pytest.raises(UserError, match="weights alone"):
        own("laion-nsfw-l14", head, out)
    for junk in (b"nonsense", b"", b"\x8a", b"M", b"b", b"X\x01"):  # Each makes the reader raise another exception.
        head.write_bytes(junk)
        with pytest.raises(UserError, match="weights alone"):
            own("laion-nsfw-l14", head, out)
    assert not out.exists()
    out.write_bytes(b"")
    with pytest.raises(UserError, match="exists already"):
        own("laion-nsfw-l14", head, out)


def test_only_the_published_file_unless_it_is_one_s_own(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SHA-256, and Git's name of a file, of "hello" with a line's end, as sha256sum and git hash-object print them."""
    file, out = tmp_path / "head.pth", tmp_path / "h.safetensors"
    file.write_text("hello\n")
    digests = {
        "laion-nsfw-l14": "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        "laion-nsfw-h14": "git:ce013625030ba8dba906f756967f9e9ca394464a",
    }
    for name, digest in digests.items():
        with pytest.raises(UserError, match=rf"expected {PUBLISHED[name].digest}, got {digest}.*curl -L -o .*--own"):
            convert(name, file, out)
        monkeypatch.setitem(PUBLISHED, name, dataclasses.replace(PUBLISHED[name], digest=digest))
        with pytest.raises(UserError, match="weights alone"):  # It is the file, and goes on to be read.
            convert(name, file, out)
    told = call("convert", "--help").out
    for weights in PUBLISHED.values():
        assert weights.fetch in told
        assert weights.fetch.startswith(f"curl -L -o {weights.file} https://github.com/")
    assert PUBLISHED["inception-fid"].file[-12:-4] == PUBLISHED["inception-fid"].digest[7:15]


def test_heads_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"curl -L -o .* && metaunlearn convert laion-nsfw-l14 clip_ViT-L-14"):
        NsfwHead.load(tmp_path / "head.pth")
    (tmp_path / "h.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot be read"):
        NsfwHead.load(tmp_path / "h.safetensors")
    save_tensors(tmp_path / "h.safetensors", head_tensors())
    with pytest.raises(UserError, match="of the kind ''"):
        NsfwHead.load(tmp_path / "h.safetensors")


def test_the_verdict_on_one_image_says_nothing_of_others() -> None:
    score = nsfw_score(torch.tensor([0.3]), NsfwHead("laion-nsfw-l14", head_tensors(), name="tiny"), ColourJudge())
    assert (score.low, score.high) == (0, 1)
