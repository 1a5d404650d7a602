"""UCE, unified concept editing (Gandikota et al., WACV 2024): keys and values of cross-attention in closed form.

For each matrix W of the cross-attention's keys and values, W' minimises

    e Σ || W' c - v* ||^2  +  p Σ || W' r - W r ||^2  +  lambda || W' - W ||^2,      v* = W g

over the tokens c of the concepts, g of the guide text and r of what is kept, so that

    W' = (lambda W + e Σ v* cᵀ + p Σ (W r) rᵀ) (lambda I + e Σ c cᵀ + p Σ r rᵀ)⁻¹.

Stable Diffusion XL: c is the token that cross-attention reads, both encoders' embeddings of it side by side (D = 2048).
Its pooled embedding of the whole prompt reaches the UNet through the time embedding, which is not edited.

Two presets, by the year of the authors' code, which differ in the tokens, the guide and what is kept.

Shapes: N tokens, D text width, O outputs of a matrix (O, D).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from metaunlearn.data.concepts import ConceptPrompts, check_guide
from metaunlearn.erasure.interface import Edit, ErasureTask
from metaunlearn.errors import RunError, UserError
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.parameters import Params, add, norm, subset
from metaunlearn.settings import Settings

logger = logging.getLogger(__name__)

ROUNDING_DECIDES = 1e12
"""Above this condition number float64 leaves fewer digits than float32 weights have."""
NOTHING = 1e-6
"""A change of the matrices, relative to them, that is rounding."""


class Uce(Settings):
    """``uce-2023`` and ``uce-2025``; what they keep is what every method keeps (``--related``, ``--retain``).

    As published they keep the empty prompt (2023) or nothing (2025) unless the user names something: ``--retain none``.
    """

    tokens: Literal["from-last", "last"] = "from-last"
    """Of a concept: its last token and everything behind it (2023), or its last token alone (2025)."""
    guide: str = " "
    """What the concept is to mean from now on; the public code takes "art" for styles in 2025."""
    keep_empty: bool = True
    """Also keep the empty prompt as it is, all its tokens."""
    erase_scale: float = Field(default=1.0, gt=0)
    """e, weight of each concept. Lower it when a closed-form edit erases more than it should."""
    preserve_scale: float | None = Field(default=None, ge=0)
    """p, weight of each text that is kept; by default max(0.1, 1 / their number)."""
    anchor_scale: float = Field(default=0.5, gt=0)
    """lambda, how strongly the matrices stay as they are."""
    subset: str = "f"
    """Which parameters the second stage trains, with the meta objective; the paper does not say."""

    def trained(self, model: TextToImageModel) -> frozenset[str]:
        """The second stage's."""
        return second_stage(model, self.subset)

    def check(self, model: TextToImageModel, prompts: ConceptPrompts) -> None:
        """Refuse a model whose tokenizers disagree about where a concept ends, and a guide that it reads in part."""
        check_guide(model.pipeline, self.guide)
        model.last_tokens(prompts.edited)

    def edit(self, task: ErasureTask) -> Edit:
        """Every concept at once."""
        theta = task.model.parameters()
        changes = self.changes(task)
        matrices, condition = edited_matrices(theta, changes, self.anchor_scale)
        return Edit(theta | matrices, edit_report(theta, matrices, [condition], len(self.kept(task))))

    def kept(self, task: ErasureTask) -> list[str]:
        """The texts that are kept, the empty prompt among them if it is."""
        return [*([""] if self.keep_empty else []), *task.prompts.kept]

    def changes(self, task: ErasureTask) -> TokenChanges:
        """Which token is to be read as which, and how much that matters."""
        model, kept = task.model, self.kept(task)
        scale = max(0.1, 1 / max(len(kept), 1)) if self.preserve_scale is None else self.preserve_scale
        erased = concept_tokens(model, task.prompts.edited, self.guide, last_only=self.tokens == "last")
        preserved = kept_tokens(model, kept, last_only=self.tokens == "last")
        return joined_changes(erased.weighted(self.erase_scale), preserved.weighted(scale))


def second_stage(model: TextToImageModel, which: str) -> frozenset[str]:
    """phi of the second stage, the subset ``which``; refuses a model without cross-attention."""
    projections(model.parameter_names)
    return subset(model.parameter_names, which)


class TokenChanges(NamedTuple):
    """Encoded tokens and what they are to be read as."""

    tokens: Tensor
    """(N, D)."""
    read_as: Tensor
    """(N, D); equal to ``tokens`` for what is kept."""
    weights: Tensor
    """(N,)."""

    def weighted(self, scale: float) -> TokenChanges:
        """The same with all weights ``scale``."""
        return self._replace(weights=torch.full_like(self.weights, scale))


def joined_changes(*parts: TokenChanges) -> TokenChanges:
    """All of them at once."""
    return TokenChanges(*(torch.cat(values) for values in zip(*parts, strict=True)))


def token_changes(tokens: Sequence[Tensor], read_as: Sequence[Tensor]) -> TokenChanges:
    """Stretches (n, D) of what is read of prompts, at least one, in float64, each token with weight 1."""
    both = [torch.cat([part.double().cpu() for part in parts]) for parts in (tokens, read_as)]
    return TokenChanges(both[0], both[1], torch.ones(len(both[0]), dtype=torch.float64))


def tokens_read(model: TextToImageModel, texts: Sequence[str]) -> Tensor:
    """What keys and values are made of, (B, T, D): encoded texts, through the denoiser's own projection if it has one.

    That projection is not edited.
    """
    tokens = model.encode_prompts(texts).tokens
    projection = model.unet.encoder_hid_proj
    return tokens if projection is None else projection(tokens)


def concept_tokens(model: TextToImageModel, concepts: Sequence[str], guide: str, *, last_only: bool) -> TokenChanges:
    """Each concept's tokens from its last one on, against the guide's from its last one on, cut to equal lengths."""
    *encoded, to = tokens_read(model, [*concepts, guide])
    *starts, to_start = model.last_tokens([*concepts, guide])
    lengths = [1 if last_only else len(to) - max(start, to_start) for start in starts]
    return token_changes(
        [row[start : start + length] for row, start, length in zip(encoded, starts, lengths, strict=True)],
        [to[to_start : to_start + length] for length in lengths],
    )


def kept_tokens(model: TextToImageModel, texts: Sequence[str], *, last_only: bool) -> TokenChanges:
    """All tokens of each text, or its last one, to be read as themselves."""
    if not texts:
        return TokenChanges(*(part[:0] for part in kept_tokens(model, [""], last_only=False)))
    encoded = tokens_read(model, texts)
    if last_only:
        encoded = encoded[torch.arange(len(texts)), model.last_tokens(texts)][:, None]
    return token_changes(list(encoded), list(encoded))


def projections(theta: Iterable[str]) -> list[str]:
    """Names of the weights (O, D) of every cross-attention's keys and values."""
    names = sorted(name for name in theta if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")))
    if not names:
        raise UserError(
            "MODEL has no cross-attention keys and values (attn2.to_k, attn2.to_v), which UCE and RECE edit; "
            "choose another method (method=..., --method esd-f-1)."
        )
    return names


def edited_matrices(theta: Params, changes: TokenChanges, anchor_scale: float) -> tuple[Params, float]:
    """Every matrix of :func:`projections` after ``changes``, in its own precision, and the condition number."""
    c, g, weights = changes
    gram = anchor_scale * torch.eye(c.shape[1], dtype=c.dtype) + c.T @ (weights[:, None] * c)
    if not gram.isfinite().all():
        raise RunError("the texts' embeddings are not finite, so no matrix can be edited by them; is MODEL whole?")
    condition = float(torch.linalg.cond(gram))
    matrices = {}
    for name in projections(theta):
        W = theta[name].double().cpu()
        # A bias is part of the layer's answer for the guide and of what W' is to answer: it cancels.
        matrices[name] = closed_form_edit(W, c, g @ W.T, weights, anchor_scale, gram).to(theta[name])
    if not all(matrix.isfinite().all() for matrix in matrices.values()):
        raise RunError("the edited matrices are not finite; raise anchor_scale (--set anchor_scale=...).")
    return matrices, condition


def closed_form_edit(
    W: Tensor, c: Tensor, v_star: Tensor, weights: Tensor, anchor_scale: float, gram: Tensor
) -> Tensor:
    """UCE Eq. 7: (lambda W + Σ w v* cᵀ)(lambda I + Σ w c cᵀ)⁻¹, (O, D), for tokens c (N, D) and v* (N, O).

    ``gram`` is the matrix that is inverted, (D, D): it is the same for every W.
    """
    right = anchor_scale * W + v_star.T @ (weights[:, None] * c)
    return torch.linalg.solve(gram, right, left=False)


def edit_report(before: Params, matrices: Params, conditions: list[float], kept: int) -> dict[str, Any]:
    """How many texts UCE's edit ``kept``, how well-conditioned the edits were, and how far the matrices moved.

    Warns where rounding decided.
    """
    worst = max(conditions)
    if worst > ROUNDING_DECIDES:
        logger.warning(
            "the closed-form edit has condition number %.0e: rounding decides its result; raise anchor_scale or lower "
            "erase_scale (--set anchor_scale=...)",
            worst,
        )
    old = {name: before[name] for name in matrices}
    change = norm(add(matrices, old, -1.0)) / norm(old)
    if change < NOTHING:
        raise RunError(
            "the closed-form edit changed nothing: to MODEL the concept and its guide are the same tokens, or "
            "erase_scale is next to nothing. Name the concept in other words, or choose an optimised method "
            "(method=..., --method esd-x-1)."
        )
    logger.info(
        "closed-form edit of %d matrices that keeps %d texts: condition number %.1e, relative change %.3f",
        len(matrices),
        kept,
        worst,
        change,
    )
    return {
        "edited_matrices": len(matrices),
        "kept_texts": kept,
        "condition_numbers": conditions,
        "relative_change": change,
    }
