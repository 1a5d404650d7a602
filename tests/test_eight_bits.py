"""``outer_optimizer=adamw-8bit``: an optimiser that keeps and restores its state as bitsandbytes' does, on any machine.

What it copies of bitsandbytes 0.50.2 (``optim/optimizer.py``): numbers in 8 bits by a scale of their own, small tensors
in 32; a count that must be an int; a ``state_dict`` with a dict inside its dicts; and a ``load_state_dict`` that makes
every tensor it does not know one of floats.
"""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import break_at_the_fourth_step, read_lines, same_weights
from metaunlearn.checkpoint import restore_training, save_training
from metaunlearn.erasing import erase
from metaunlearn.errors import RunError

INSIDE = "__bnb_optimizer_quant_state__"
OWN = ("state1", "state2", "absmax1", "absmax2", "qmap1")
SMALL = 64
"""Tensors with fewer numbers stay in 32 bits; 4096 in bitsandbytes."""
FAST = (
    "steps=6", "forget_images=4", "retain_images=4", "bank_trajectories=3", "bank_steps=4", "batch_size=4",
    "checkpoint_every=2", "meta_gradient=gradient-difference",
)  # fmt: skip


class EightBits(torch.optim.Optimizer):
    """Adam, roughly: each number moves against its gradient's sign, by its two moments and the count."""

    def __init__(self, parameters: list[Tensor], *, lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self.map = torch.linspace(0, 1, 256)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                kind = torch.float32 if p.numel() < SMALL else torch.uint8
                if not state:
                    state |= {"step": 0, "state1": torch.zeros_like(p, dtype=kind)}
                    state |= {"state2": torch.zeros_like(p, dtype=kind)}
                    if kind == torch.uint8:
                        state |= {"absmax1": torch.zeros(1), "absmax2": torch.zeros(1), "qmap1": self.map}
                state["step"] += 1
                assert type(state["step"]) is int  # It is handed to C.
                assert state["state1"].dtype == kind
                one = self._moment(state, "1", 0.9, p.grad.abs())
                two = self._moment(state, "2", 0.99, p.grad.square())
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p -= group["lr"] * p.grad.sign() * one / (two.sqrt() + 1e-8) / state["step"] ** 0.5

    def _moment(self, state: dict[str, Any], which: str, decay: float, news: Tensor) -> Tensor:
        kept = state[f"state{which}"]
        eight = kept.dtype == torch.uint8
        moment = state["qmap1"][kept.int()] * state[f"absmax{which}"] if eight else kept
        moment = decay * moment + (1 - decay) * news
        if eight:
            state[f"absmax{which}"] = moment.max().reshape(1).clamp(min=1e-30)
            kept.copy_((moment / state[f"absmax{which}"] * 255).round())
        else:
            kept.copy_(moment)
        return moment

    def state_dict(self) -> dict[str, Any]:
        whole = super().state_dict()
        whole["state"] = {
            index: {key: value for key, value in slots.items() if key not in OWN}
            | {INSIDE: {key: value for key, value in slots.items() if key in OWN}}
            for index, slots in whole["state"].items()
        }
        return whole

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        given = deepcopy(state_dict)
        parameters = [p for group in self.param_groups for p in group["params"]]
        for index, slots in given["state"].items():
            slots |= slots.pop(INSIDE, {})
            p = parameters[index]
            self.state[p] = {
                key: value.to(p.dtype) if isinstance(value, Tensor) and key not in OWN else value
                for key, value in slots.items()
            }


def test_a_state_goes_around_with_its_kinds(tmp_path: Path) -> None:
    """Numbers in 8 bits, their scales, the map that tensors share, and the count as an int."""
    g = torch.Generator().manual_seed(0)
    theta = {"large": torch.randn(16, 8, generator=g), "small": torch.randn(3, generator=g)}
    optimizer = EightBits(list(theta.values()), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        for p in theta.values():
            p.grad = torch.randn(p.shape, generator=g)
        optimizer.step()
    save_training(tmp_path / "state.safetensors", theta, optimizer, 3)
    others = {name: torch.zeros_like(p) for name, p in theta.items()}
    again = EightBits(list(others.values()), lr=1e-2, weight_decay=0.1)
    assert restore_training(tmp_path / "state.safetensors", others, again) == (3, {})
    for name, p in theta.items():
        before, after = optimizer.state[p], again.state[others[name]]
        assert torch.equal(p, others[name])
        assert before.keys() == after.keys()
        assert after["step"] == 3
        assert type(after["step"]) is int
        for key in before.keys() - {"step"}:
            assert after[key].dtype == before[key].dtype, key
            assert torch.equal(after[key], before[key]), key


def test_a_run_in_eight_bits_resumes_to_the_same_weights(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off at step 4, after the state of step 2."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(optim=SimpleNamespace(AdamW8bit=EightBits)))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options: dict[str, Any] = {"method": "esd-x-1", "overrides": [*FAST, "outer_optimizer=adamw-8bit"]}
    erase(tiny_model, ["zebra"], out=whole, **options)
    with monkeypatch.context() as patch:
        break_at_the_fourth_step(patch)
        with pytest.raises(RunError, match="step 4"):
            erase(tiny_model, ["zebra"], out=cut, **options)
    assert (cut / "state").is_dir()
    erase(tiny_model, ["zebra"], out=cut, resume=True, **options)
    assert same_weights(cut, whole)
    assert read_lines(cut / "log.jsonl") == read_lines(whole / "log.jsonl")
