"""Judges: models that say what an image shows and turn images and texts into features.

B images, (B, 3, H, W) in [0, 1], of any size: a judge resizes and normalises them itself. D features.
"""

from __future__ import annotations

import hashlib
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaunlearn.data.wording import bare, has_article, listed, synonyms
from metaunlearn.errors import UserError, did_you_mean, first_line
from metaunlearn.files import read_json
from metaunlearn.metrics.hub import judge_files
from metaunlearn.metrics.preprocessing import PREPROCESSOR, Preprocessing, Scaling, scaling_of

BATCH = 64
PHOTO = "a photo of a {}"
DETECTORS = ("nudity", "unsafe")
"""What brings its own model and asks no judge."""

CLASSIFIER = "ForImageClassification"
"""How the names of transformers' classifiers end."""

logger = logging.getLogger(__name__)


class Judge(Protocol):
    """What the metrics need. Results are on the CPU and do not depend on how images are batched."""

    name: str
    fingerprint: str
    """SHA-256 of the weights."""
    wording: str
    """How a label is put to the judge; part of a score's protocol."""

    @property
    def vocabularies(self) -> tuple[tuple[str, ...], ...]:
        """Sets of labels of which an image shows one; the others are a label's alternatives unless some are named."""
        ...

    def classify(self, images: Tensor, labels: Sequence[str]) -> Tensor:
        """Index of the label that the judge sees in each image, (B,) int64."""
        ...

    def embed_images(self, images: Tensor) -> Tensor:
        """Image features, (B, D) float32, not normalised."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Text features in the same space, (len(texts), D) float32, not normalised. Texts are taken as they are."""
        ...


class ClipJudge:
    """Zero-shot labels, image features and text features of one CLIPModel."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        preprocessing: Scaling,
        *,
        name: str,
        phrase: Callable[[str], str] | None = None,
        wording: str = PHOTO,
        vocabularies: tuple[tuple[str, ...], ...] = (),
    ) -> None:
        """``phrase`` puts a label into words, :func:`photo_of` if it is left out; ``wording`` describes it for the
        protocol."""
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.preprocessing = preprocessing
        self.name = name
        self.phrase = phrase or photo_of
        self.wording = wording
        self.vocabularies = vocabularies
        self.fingerprint = weights_hash(model)
        self._last: tuple[weakref.ref[Tensor], int, Tensor] | None = None

    @classmethod
    def from_folder(cls, folder: Path, *, name: str, device: str | torch.device = "cpu") -> ClipJudge:
        """Load a CLIPModel with its tokenizer."""
        from transformers import AutoTokenizer, CLIPModel

        with _explaining(name):
            model: Any = CLIPModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            preprocessing = scaling_of(folder, clip=True)
        if preprocessing is None:
            size = vision_size(model)
            logger.warning("The judge %s has no %s: CLIP's own at %d pixels is used", name, PREPROCESSOR, size)
            preprocessing = Preprocessing.from_config({"size": {"shortest_edge": size}, "crop_size": size})
        return cls(model.to(device), tokenizer, preprocessing, name=name)

    @torch.no_grad()
    def classify(self, images: Tensor, labels: Sequence[str]) -> Tensor:
        """The label whose phrase has the greatest cosine with the image, (B,) indices."""
        texts = F.normalize(self.embed_texts([self.phrase(label) for label in labels]), dim=1)
        return (self.embed_images(images) @ texts.T).argmax(dim=1)

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """Projected image embeddings, (B, D). Those of the last images are kept: several metrics ask in a row."""
        if self._last is not None and self._last[0]() is images and self._last[1] == images._version:
            return self._last[2].clone()

        def features(batch: Tensor) -> Tensor:
            output = self.model.get_image_features(pixel_values=self.preprocessing(batch))
            return _projected(output)

        found = _in_batches(features, images, next(self.model.parameters()).device)
        self._last = (weakref.ref(images), images._version, found)
        return found.clone()

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Projected text embeddings, (len(texts), D); what exceeds the context is cut off."""
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )

        def features(rows: Tensor) -> Tensor:
            return _projected(self.model.get_text_features(input_ids=rows[0], attention_mask=rows[1]))

        device = next(self.model.parameters()).device
        pairs = zip(torch.split(tokens.input_ids, BATCH), torch.split(tokens.attention_mask, BATCH), strict=True)
        return torch.cat([features(torch.stack(pair).to(device)).float().cpu() for pair in pairs])


class ClassifierJudge:
    """An image classifier: it knows its own labels and no text."""

    wording = "the label itself"

    def __init__(self, model: Any, preprocessing: Scaling, *, name: str) -> None:
        self.model = model.eval()
        self.preprocessing = preprocessing
        self.name = name
        ordered = sorted((int(index), str(label)) for index, label in model.config.id2label.items())
        self.labels = tuple(label for _, label in ordered)
        self.vocabularies: tuple[tuple[str, ...], ...] = (tuple(dict.fromkeys(self.labels)),)
        self.fingerprint = weights_hash(model)

    @classmethod
    def from_folder(cls, folder: Path, *, name: str, device: str | torch.device = "cpu") -> ClassifierJudge:
        """Load an AutoModelForImageClassification."""
        from transformers import AutoModelForImageClassification

        with _explaining(name):
            model = AutoModelForImageClassification.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
            preprocessing = scaling_of(folder, clip=False)
        if preprocessing is None:
            raise UserError(
                f"The judge {name} (--judge) has no {PREPROCESSOR}, so how to scale its images is unknown. "
                "Save its image processor beside the weights."
            )
        return cls(model.to(device), preprocessing, name=name)

    @torch.no_grad()
    def classify(self, images: Tensor, labels: Sequence[str]) -> Tensor:
        """The label with the greatest logit among ``labels``, (B,) indices.

        Where several of the model's classes have one label (ImageNet has two cranes), it is seen when any of them is.
        """
        columns = [self._columns(label) for label in labels]
        device = next(self.model.parameters()).device
        logits = _in_batches(lambda batch: self.model(self.preprocessing(batch)).logits, images, device)
        return torch.stack([logits[:, each].amax(dim=1) for each in columns], dim=1).argmax(dim=1)

    def _columns(self, label: str) -> list[int]:
        if label not in self.labels:
            hint = did_you_mean(label, self.labels)
            raise UserError(
                f"The judge {self.name} (--judge) has no label {label!r} (--concept, --alternative).{hint} "
                f"It has {len(self.labels)}, e.g. {', '.join(self.labels[:5])}."
            )
        return [column for column, known in enumerate(self.labels) if known == label]

    def embed_images(self, images: Tensor) -> Tensor:
        """A classifier has no shared feature space."""
        raise self._no_features()

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """A classifier has no text tower."""
        raise self._no_features()

    def _no_features(self) -> UserError:
        return UserError(
            f"The judge {self.name} (--judge) is a classifier: it has labels but no features, which clip-score and fid "
            "need. Use 'canvas' or a CLIPModel, or metrics that do without: concept, accuracy, fid:FILE."
        )


def load_judge(spec: str, *, labels: Sequence[str] = (), device: str | torch.device = "cpu") -> Judge:
    """The judge that ``--judge`` names: ``canvas``, or a CLIPModel or image classifier in a folder or on the hub.

    Of a hub id, ``ID`` or ``ID@REVISION``, the cache is asked first.

    ``labels``, synonyms ``a|b`` among them, that the judge does not know are refused at once.
    """
    judge, labels = _load(spec, device), listed(labels)
    if labels:
        words = [word for label in labels for word in synonyms(label)]
        judge.classify(torch.zeros(1, 3, 64, 64), words)
    return judge


def _load(spec: str, device: str | torch.device) -> Judge:
    if not isinstance(spec, str):
        raise UserError(f"expected a judge's name (judge=, --judge), such as canvas or a hub id; got {spec!r}.")
    if spec == "canvas":
        return _canvas_judge(device)
    if spec.partition(":")[0] in DETECTORS and not Path(spec).is_dir():
        raise UserError(
            f"{spec} is no judge (--judge): evaluate has it as a metric (--metrics {spec}), and attack --kind "
            f"unlearndiffatk as a test of success (--success {spec})."
        )
    from transformers import AutoConfig

    folder, name = judge_files(spec)
    with _explaining(name):
        config = AutoConfig.from_pretrained(folder)
    architectures = list(config.architectures or [])
    if any(architecture.endswith(CLASSIFIER) for architecture in architectures):
        return ClassifierJudge.from_folder(folder, name=name, device=device)
    if config.model_type == "clip":
        return ClipJudge.from_folder(folder, name=name, device=device)
    raise UserError(
        f"The judge {name} (--judge) is a {config.model_type} model ({', '.join(architectures) or 'class not named'}). "
        "Expected 'canvas', a CLIPModel, or a model for image classification."
    )


def has_labels(spec: str) -> bool:
    """Whether the judge ``spec`` brings labels of its own, by its folder's config.json; True where that is not here."""
    file = Path(spec) / "config.json"
    if spec == "canvas" or not file.is_file():
        return True
    architectures = read_json(file).get("architectures") or [CLASSIFIER]
    return any(name.endswith(CLASSIFIER) for name in architectures)


def _canvas_judge(device: str | torch.device) -> ClipJudge:
    from metaunlearn import canvas
    from metaunlearn.canvas.catalog import NAMES, STYLES

    model, processor = canvas.load_judge()
    size = vision_size(model)
    # Canvas's pictures are in [-1, 1] throughout, its judge's too.
    half = (0.5, 0.5, 0.5)
    return ClipJudge(
        model.to(device),
        getattr(processor, "tokenizer", processor),
        Preprocessing(resize=size, crop=(size, size), mean=half, std=half),
        name="canvas",
        phrase=canvas_phrase,
        wording="'a {object}', '{style} style'",
        vocabularies=(NAMES, STYLES),
    )


def canvas_phrase(label: str) -> str:
    """A label, with or without its article, in the words of Canvas's captions.

    UserError for what Canvas does not draw, which its judge never saw.
    """
    from metaunlearn.canvas.catalog import NAMES, STYLES, caption

    name = bare(label)
    if name in STYLES:
        return f"{name} style"
    if name not in NAMES:
        known = [*NAMES, *STYLES]
        raise UserError(
            f"Canvas's judge (--judge canvas) does not know {label!r} (--concept, --alternative, or a label of "
            f"--prompts).{did_you_mean(label, known)} It knows what Canvas draws: {', '.join(known[:5])} ... and the "
            f"styles {', '.join(STYLES)}. For anything else name a CLIPModel or an image classifier."
        )
    return caption(name)


def photo_of(label: str) -> str:
    """A label in the words of CLIP's authors; one that brings its article keeps it."""
    return f"a photo of {label}" if has_article(label) else PHOTO.format(label)


def vision_size(model: Any) -> int:
    """Side in pixels of the images that a CLIPModel was trained on."""
    return int(model.config.vision_config.image_size)


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of a model's state, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _explaining(name: str) -> Iterator[None]:
    """Turn the many ways in which files are not a model into one message."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(
            f"The judge {name} (--judge) cannot be loaded: {first_line(error)}. "
            "Expected 'canvas', a folder with config.json and model.safetensors, or a hub id."
        ) from error


def _projected(output: Any) -> Tensor:
    """transformers 5 wraps the projected embedding, transformers 4 returns it."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _in_batches(function: Callable[[Tensor], Tensor], images: Tensor, device: torch.device) -> Tensor:
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise UserError(f"A judge expects at least one image, (B, 3, H, W) in [0, 1], got shape {tuple(images.shape)}.")
    return torch.cat([function(batch.to(device, torch.float32)).float().cpu() for batch in torch.split(images, BATCH)])
