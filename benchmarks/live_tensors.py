"""The most that tensors hold at once in a step of Stable Diffusion 1.4 at its true size, without a GPU.

    python benchmarks/live_tensors.py

Nothing is computed: the tensors are torch's fake ones, which have a shape and no numbers, and each is counted for as
long as it is alive. Numbers that a step asks for, losses and norms, are made up. What a card needs beyond its tensors
(kernels' workspace, fragments) is not in it. The denoiser's own copy lies on the host, as while ``erase`` trains.
"""

from __future__ import annotations

import argparse
import contextlib
import weakref
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from diffusers import DDPMScheduler
from full_size import MODELS, STEPS, RandomModel, run_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metaunlearn.config import EraseSettings
from metaunlearn.diffusion import NoiseSchedule
from metaunlearn.meta import store
from metaunlearn.models.memory import checkpointing
from metaunlearn.parameters import Params
from metaunlearn.recipe import read_recipe
from metaunlearn.settings import resolve

MADE_UP = 0.5
"""Every loss and norm."""
GIB = 2**30


class Alive(TorchDispatchMode):
    """While this is entered: the bytes of tensors that are alive, and the most of them so far."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                self._see(tensor.untyped_storage())
        return made

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def away(alive: Params) -> store.Elsewhere:
    """``inner_store=host`` of a card: what lies there is on the device ``meta``, and not counted."""

    def move(params: Params) -> store.Back:
        there = {name: p.to("meta") for name, p in params.items()}
        return lambda: ((name, torch.empty_like(p, device="cpu")) for name, p in there.items())

    return store.Elsewhere(alive, move)


def made_up(*_: Any) -> float:
    """Of whatever a loss or a norm was asked; it keeps none of it alive, as a mock would."""
    return MADE_UP


def made_up_bool(_: Tensor) -> bool:
    """``Tensor.__bool__``."""
    return True


def made_up_list(x: Tensor) -> Any:
    """``Tensor.tolist``."""
    return [MADE_UP] * len(x) if x.dim() else MADE_UP


@contextlib.contextmanager
def made_up_numbers() -> Iterator[None]:
    """Fake tensors have no numbers to give."""
    with contextlib.ExitStack() as stack:
        for name in ("item", "__float__"):
            stack.enter_context(mock.patch.object(Tensor, name, made_up))
        stack.enter_context(mock.patch.object(Tensor, "__bool__", made_up_bool))
        stack.enter_context(mock.patch.object(Tensor, "tolist", made_up_list))
        for module in ("parameters", "meta.products", "meta.train"):
            stack.enter_context(mock.patch(f"metaunlearn.{module}.norm", made_up))
        yield


def peak(name: str, step: str, settings: EraseSettings) -> float:
    """GiB that the tensors of the second step hold at the most, when the optimiser has its moments."""
    schedule = NoiseSchedule.of(DDPMScheduler())
    with (
        mock.patch.object(RandomModel, "schedule", schedule),
        mock.patch.dict(store.STORES, {"host": away}),
        FakeTensorMode(allow_non_fake_inputs=True),
        Alive() as alive,
        made_up_numbers(),
    ):
        model = RandomModel(name, device="cpu", reduced=False)
        aside = sum(p.untyped_storage().nbytes() for p in model.unet.parameters())
        run = run_of(model, step, settings)
        with checkpointing(model.unet, settings.gradient_checkpointing):
            run.take_step()
            run.take_step()
        return (alive.peak - aside) / GIB


def main() -> None:
    """A line for each kind of step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="sd14")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=["first order", "gradient difference"])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="beside the recipe sd14")
    given = parser.parse_args()
    usual = ["batch_size=4", "diagnostics_every=0", "gradient_checkpointing=true", "inner_store=host"]
    for step in given.steps:
        mode = [] if STEPS[step] is None else [f"meta_gradient={STEPS[step]}"]
        settings = resolve(EraseSettings, read_recipe("sd14").erase, [*usual, *mode, *given.set])
        print(f"{given.model}, {step}: {peak(given.model, step, settings):.1f} GiB", flush=True)


if __name__ == "__main__":
    main()
