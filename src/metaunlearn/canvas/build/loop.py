"""The training loop that Canvas's stages share: AdamW, warm-up, cosine decay, weight averaging, resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from metaunlearn.checkpoint import load_tensors, optimizer_tensors, restore_optimizer, save_tensors, step_generator

LossFunction = Callable[[int, torch.Generator], Tensor]

AVERAGING = 0.999
"""How much of the weights' average stays at each step, once it is long."""


def run_stage(
    name: str,
    model: nn.Module,
    loss: LossFunction,
    *,
    steps: int,
    learning_rate: float,
    folder: Path,
    weight_decay: float = 1e-4,
    anneal: bool = True,
    checkpoint_every: int = 500,
) -> None:
    """Train ``model`` in place and leave the averaged weights in it; ``folder/NAME.safetensors`` lets it go on.

    ``loss(step, generator)`` draws all of its randomness from ``generator``. With ``anneal`` the learning rate decays
    to 2 % along a cosine; without, it stays (for a stage that a later one continues).
    """
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        trained.values(), lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.99), fused=True
    )
    average = {key: p.detach().clone() for key, p in trained.items()}
    state_file = folder / f"{name}.safetensors"
    start = 0
    if state_file.exists():
        tensors, metadata = load_tensors(state_file)
        start = int(metadata["step"])
        restore_optimizer(optimizer, tensors)
        with torch.no_grad():
            for key, p in trained.items():
                p.copy_(tensors[f"model.{key}"])
                average[key].copy_(tensors[f"average.{key}"])

    began, running = time.monotonic(), 0.0
    for step in range(start, steps):
        progress = step / steps
        decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)) if anneal else 1.0
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 200) * decay
        value = loss(step, step_generator(0, step, name))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        with torch.no_grad():
            weight = 1 - min(AVERAGING, (step + 1) / (step + 10))
            for key, p in trained.items():
                average[key].lerp_(p, weight)
        running = value.item() if step == start else 0.98 * running + 0.02 * value.item()
        done = step + 1
        if done % 100 == 0:
            pace = (time.monotonic() - began) / (done - start)
            print(f"{name} {done}/{steps} loss {running:.4f} {pace:.3f} s/step", flush=True)
        if done % checkpoint_every == 0 or done == steps:
            tensors = {f"model.{key}": p for key, p in trained.items()}
            tensors |= {f"average.{key}": p for key, p in average.items()}
            save_tensors(state_file, tensors | optimizer_tensors(optimizer), {"step": str(done)})
    with torch.no_grad():
        for key, p in trained.items():
            p.copy_(average[key])
