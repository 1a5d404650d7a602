"""Tensors in files, and the state of a training as one of them.

A training state is one flat ``{name: tensor}`` file. Randomness is not part of it: every random draw of a run comes
from a generator seeded by the run's seed and the step's number, so a resumed run draws what an uninterrupted one would.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from metaunlearn.errors import RunError, UserError
from metaunlearn.files import whole_or_absent
from metaunlearn.parameters import norm
from metaunlearn.shards import are_pieces, piece, whole

OPTIMIZER = "optimizer."
"""Prefix of the optimiser's state."""
MORE = "more."
"""Prefix of what a training state holds beside parameters and optimiser."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write ``tensors`` as one safetensors file, atomically; what lies contiguous on the host is not copied."""
    packed: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        x = tensor.detach().cpu().contiguous()
        if x.untyped_storage().data_ptr() in storages:
            x = x.clone()  # safetensors refuses tensors that share storage (tied weights, a bias viewed twice).
        storages.add(x.untyped_storage().data_ptr())
        packed[name] = x
    with whole_or_absent(path) as partial:
        save_file(packed, partial, dict(metadata) if metadata else None)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what :func:`save_tensors` wrote: the tensors and the metadata."""
    with safe_open(path, framework="pt") as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}, dict(handle.metadata() or {})  # noqa: SIM118


def load_kept(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The same of what a run keeps for itself; UserError says what to do about a damaged file."""
    try:
        return load_tensors(path)
    except SafetensorError as error:
        raise UserError(
            f"{path} is damaged, or was cut off ({error}). Delete it and make the same call again: what it held is "
            "made anew, and what lies beside it is kept."
        ) from None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of a ``torch.optim`` optimiser as flat tensors named ``optimizer.{parameter index}.{key}``."""
    return {
        f"{OPTIMIZER}{index}.{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, slots in _flat(optimizer)["state"].items()
        for key, value in slots.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`optimizer_tensors` took; hyperparameters stay as they are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor | int]] = {}
    for name, tensor in tensors.items():
        if name.startswith(OPTIMIZER):
            index, key = name.removeprefix(OPTIMIZER).split(".", 1)
            state.setdefault(int(index), {})[key] = _slot(tensor, parameters[int(index)])
    optimizer.load_state_dict({"state": state, "param_groups": _flat(optimizer)["param_groups"]})


def _flat(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimiser's ``state_dict`` as torch lays it out: bitsandbytes' own puts tensors into a dict inside it.

    Their ``load_state_dict`` takes either.
    """
    return torch.optim.Optimizer.state_dict(optimizer)


def _slot(tensor: Tensor, p: Tensor) -> Tensor | int:
    """What an optimiser kept of ``p``, from the tensor that it became.

    A single integer was an int: torch's own count steps in floats, and bitsandbytes takes no tensor for its count.
    """
    if tensor.ndim == 0 and tensor.dtype == torch.int64:
        return int(tensor)
    return piece(tensor, p) if tensor.shape == p.shape else tensor


def save_training(
    file: Path,
    theta: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    step: int,
    more: Mapping[str, Tensor] | None = None,
    *,
    writes: bool = True,
) -> None:
    """Keep what a resumed run needs: the trained parameters, the optimiser's state, the steps done, and ``more``.

    Of several processes that hold pieces of these all call this, and the one that ``writes`` keeps whole tensors.
    RunError when the parameters are no finite numbers: what was kept before is better.
    """
    if not math.isfinite(norm({**theta})):
        raise RunError(
            f"the weights are not finite numbers after step {step}; the last good state was kept. Begin anew in "
            "another folder, with a lower learning_rate (--set learning_rate=...)."
        )
    tensors = {f"theta.{name}": p for name, p in theta.items()}
    tensors |= {f"{MORE}{name}": tensor for name, tensor in (more or {}).items()}
    tensors |= optimizer_tensors(optimizer)
    if are_pieces(tensors.values()):
        # One at a time: the card holds no more than one of them whole.
        tensors = {name: kept for name, x in tensors.items() if (kept := _on_host(x, writes)) is not None}
    if writes:
        save_tensors(file, tensors, {"step": str(step)})


def _on_host(x: Tensor, kept: bool) -> Tensor | None:
    everything = whole(x)
    return everything.cpu() if kept else None


def restore_training(
    file: Path, theta: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, Tensor]]:
    """Put back, in place, what :func:`save_training` kept; return the steps done, and ``more``."""
    tensors, metadata = load_kept(file)
    with torch.no_grad():
        for name, p in theta.items():
            p.copy_(piece(tensors[f"theta.{name}"], p))
    restore_optimizer(optimizer, tensors)
    more = {name.removeprefix(MORE): tensor for name, tensor in tensors.items() if name.startswith(MORE)}
    return int(metadata["step"]), more


def step_generator(seed: int, step: int, stream: str = "") -> torch.Generator:
    """A fresh CPU generator for one step: a function of ``seed``, ``step`` and the name of the stream only."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{step}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
