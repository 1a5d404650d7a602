"""Asking a model with tokens instead of text, differentiably: what attacks on words and on text encoders need.

Shapes: B prompts, T text tokens, D text width, which is each text encoder's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaunlearn.conditioning import Conditioning
from metaunlearn.models.unet_model import UNetModel
from metaunlearn.parameters import Params


class TokenModel(UNetModel):
    """An adapter but for how prompts are encoded, and how the denoiser is told what its text encoders say."""

    def conditioning(self, encoded: Sequence[Any]) -> Conditioning:
        """What the denoiser is told, from the output of each text encoder: each family's own."""
        raise NotImplementedError

    def token_ids(self, prompts: Sequence[str]) -> Tensor:
        """Token ids, (B, encoders, T): start, words, end, padding; what exceeds the context is cut off."""
        return torch.stack([_ids(getattr(self.pipeline, name), prompts) for name in self.tokenizers], dim=1).to(
            self.device
        )

    @property
    def token_tables(self) -> tuple[Tensor, ...]:
        """What each text encoder looks tokens up in, (tokens, D)."""
        return tuple(getattr(self.pipeline, name).get_input_embeddings().weight for name in self.text_encoders)

    def text_parameters(self) -> Params:
        """psi: a copy of the text encoders' parameters that reach the denoiser, each with its encoder's name first.

        Of XL's first encoder neither the last layer nor what follows it is among them.
        """
        psi = {
            f"{name}.{key}": p.detach().clone().requires_grad_()
            for name in self.text_encoders
            for key, p in getattr(self.pipeline, name).named_parameters()
        }
        told = self.encode_tokens(self.token_ids([""]), psi).tensors().values()
        total = torch.stack([part.sum() for part in told]).sum()
        slopes = torch.autograd.grad(total, list(psi.values()), allow_unused=True)  # None: what this looks for.
        return {name: p.detach() for (name, p), slope in zip(psi.items(), slopes, strict=True) if slope is not None}

    def load_text_parameters(self, psi: Params) -> None:
        """Write ``psi`` into the pipeline's text encoders."""
        with torch.no_grad():
            for name, p in psi.items():
                encoder, _, key = name.partition(".")
                getattr(self.pipeline, encoder).get_parameter(key).copy_(p)

    def encode_tokens(
        self, ids: Tensor, psi: Params | None = None, *, looked_up: Sequence[Tensor] | None = None
    ) -> Conditioning:
        """Encoded prompts of token ids (B, encoders, T); differentiable, unlike :meth:`encode_prompts`.

        ``psi`` are other parameters for the text encoders. ``looked_up``, a (B, T, D) for each of them, stands in for
        the rows of :attr:`token_tables` that ``ids`` would look up.
        """
        encoded = []
        for place, name in enumerate(self.text_encoders):
            own = {key.removeprefix(f"{name}."): p for key, p in (psi or {}).items() if key.startswith(f"{name}.")}
            rows = None if looked_up is None else looked_up[place]
            tokenizer = getattr(self.pipeline, self.tokenizers[place])
            encoded.append(_encoded(getattr(self.pipeline, name), tokenizer, ids[:, place], own, rows))
        return self.conditioning(encoded)


def _ids(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    ids: Tensor = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return ids


def _encoded(encoder: Any, tokenizer: Any, ids: Tensor, psi: Params, looked_up: Tensor | None) -> Any:
    options: dict[str, Any] = {"output_hidden_states": True}
    if getattr(encoder.config, "use_attention_mask", None):  # diffusers' pipelines tell the encoder then, and else not.
        options["attention_mask"] = _mask(tokenizer, ids)
    # Hooks rather than an argument: transformers' text encoders take no embeddings in place of ids.
    hooks = []
    if looked_up is not None:
        table = encoder.get_input_embeddings().weight
        # Some encoders have two modules of one table, and ask the other one.
        tables = [module for module in encoder.modules() if isinstance(module, nn.Embedding) and module.weight is table]
        hooks = [module.register_forward_hook(lambda *_: looked_up) for module in tables]
    try:
        return functional_call(encoder, psi, (ids,), options)
    finally:
        for hook in hooks:
            hook.remove()


def _mask(tokenizer: Any, ids: Tensor) -> Tensor:
    """(B, T) int64: 1 up to the end token of each prompt, 0 for the padding behind it."""
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    ends = (ids == end).long()
    return (ends.cumsum(dim=1) - ends == 0).long()
