"""RECE, reliable and efficient concept erasure (Gong et al., ECCV 2024): UCE, then again for what survived it.

After UCE some other embedding c' makes the edited matrices W̃ answer as the original W did for the concept c:

    c' = argmin Σ_i || W̃_i c' - W_i c ||^2 + mu || c' ||^2 = (mu I + Σ_i W̃_iᵀ W̃_i)⁻¹ (Σ_i W̃_iᵀ W_i) c

summed over every key and value matrix i. Each epoch finds c' for all tokens of every concept, and edits them away with
the equation of UCE, anchored on the current W̃.

Shapes: T tokens of an encoded prompt, D text width.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from metaunlearn.data.concepts import ConceptPrompts, check_guide
from metaunlearn.erasure.interface import Edit, ErasureTask
from metaunlearn.erasure.uce import (
    TokenChanges,
    Uce,
    edit_report,
    edited_matrices,
    joined_changes,
    kept_tokens,
    projections,
    second_stage,
    token_changes,
    tokens_read,
)  # fmt: skip
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.parameters import Params
from metaunlearn.settings import Settings


class Rece(Settings):
    """``rece``, starting from uce-2023, whose own defaults are those of the first edit whatever is set here.

    The defaults are the authors' for nudity.

    Theirs for other things, as (mu, epochs): unsafe content 0.1, 2; styles and hard objects 1e-3, 1; easy objects
    0.1, 1.
    """

    mu: float = Field(default=0.1, gt=0)
    """Weight of || c' ||^2."""
    epochs: int = Field(default=3, gt=0)
    """How often new embeddings are found and edited away."""
    guide: str = " "
    """What they are to mean from now on, and what is kept while they are edited."""
    erase_scale: float = Field(default=1.0, gt=0)
    """e, weight of each concept, in the later edits."""
    preserve_scale: float = Field(default=0.1, ge=0)
    """p, weight of the guide, which is kept once for each concept, in the later edits."""
    anchor_scale: float = Field(default=0.1, gt=0)
    """lambda, how strongly the current matrices stay as they are, in the later edits."""
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
        """UCE, then ``epochs`` edits of what still means the concepts."""
        original, uce = task.model.parameters(), Uce()
        matrices, condition = edited_matrices(original, uce.changes(task), uce.anchor_scale)
        conditions = [condition]
        for _ in range(self.epochs):
            current = original | matrices
            matrices, condition = edited_matrices(current, self._changes(task, original, current), self.anchor_scale)
            conditions.append(condition)
        return Edit(original | matrices, edit_report(original, matrices, conditions, len(uce.kept(task))))

    def _changes(self, task: ErasureTask, original: Params, current: Params) -> TokenChanges:
        model, concepts = task.model, task.prompts.edited
        *encoded, to = tokens_read(model, [*concepts, self.guide])
        found = [surviving_embedding(original, current, c, self.mu) for c in encoded]
        erased = token_changes(found, [to] * len(found))
        kept = kept_tokens(model, [self.guide] * len(concepts), last_only=False)
        return joined_changes(erased.weighted(self.erase_scale), kept.weighted(self.preserve_scale))


def surviving_embedding(original: Params, current: Params, c: Tensor, mu: float) -> Tensor:
    """c' (T, D) in float64, which the ``current`` matrices answer as the ``original`` ones answer c (T, D) (RECE)."""
    c = c.double().cpu()
    gram = mu * torch.eye(c.shape[1], dtype=c.dtype)
    cross = torch.zeros_like(gram)
    for name in projections(original):
        W, W_now = original[name].double().cpu(), current[name].double().cpu()
        gram += W_now.T @ W_now
        cross += W_now.T @ W
    return torch.linalg.solve(gram, cross @ c.T).T
