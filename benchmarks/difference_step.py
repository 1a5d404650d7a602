"""How far off is an exact meta-gradient by gradient difference, by the length of its step and by its products?

    python benchmarks/difference_step.py [--device cuda] [--out FILE]

Canvas after a few steps of erasing a concept with the recipe ``small-unbounded``; a simulated attacker of M steps of
SGD. The reference is the double backward with products in float32's own 24 bits. Each figure is the worst over a few
draws of pictures, noise and timesteps: ||g - g_ref|| / ||g_ref||. The rows "first order" are for scale: the first says
what the products alone cost, the last what leaving the Hessian out does. Without CUDA TF32 is imitated: the operands of
every product are rounded to its 11 bits, forwards and back, and added up in float32, as a tensor core does. The rows
"bf16" and "fp16" have Eq. 3's losses after the attack, of which no difference is taken, in that precision.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from variance import erased

from metaunlearn.checkpoint import step_generator
from metaunlearn.config import Attacker
from metaunlearn.data.sampling import Independent
from metaunlearn.files import write_atomic
from metaunlearn.meta.batches import draw
from metaunlearn.meta.hypergradient import DoubleBackward, FirstOrder, GradientDifference, MetaProblem
from metaunlearn.meta.objective import meta_problem
from metaunlearn.meta.train import Algorithm1
from metaunlearn.models.precision import Precision, Products, float32_products
from metaunlearn.parameters import Params, add, norm

STEPS = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
OVERRIDES = ["forget_images=16", "retain_images=28", "bank_trajectories=8", "inner_optimizer=sgd"]


def main() -> None:
    """Erase a little, then compare; print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concept", default="knife")
    parser.add_argument("--erased", type=int, default=10, help="outer steps before the comparison")
    parser.add_argument("--tau", type=float, default=1e-2)
    parser.add_argument("--inner-steps", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/difference_step.md"))
    options = parser.parse_args()
    imitated = not options.device.startswith("cuda")
    run = erased(options.concept, "esd-u-1", options.erased, OVERRIDES, options.device)
    where = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    lines = [
        f"{where}, torch {torch.__version__}; {options.concept}, SGD at {options.tau}, {options.draws} draws", "",
        "| products | meta-gradient | " + " | ".join(f"M = {m}" for m in options.inner_steps) + " |",
        "|---|---|" + "---|" * len(options.inner_steps),
    ]  # fmt: skip
    columns = [
        dict(rows(run, [Drawn(run, m, options.tau, number) for number in range(options.draws)], imitated=imitated))
        for m in options.inner_steps
    ]
    lines += [f"| {name} | " + " | ".join(f"{column[name]:.1e}" for column in columns) + " |" for name in columns[0]]
    write_atomic(options.out, "\n".join(lines) + "\n")
    print("", *lines, sep="\n")


class Drawn:
    """L_meta of draw ``number``."""

    def __init__(self, run: Algorithm1, inner_steps: int, tau: float, number: int) -> None:
        self._run, self._attacker = run, Attacker(optimizer="sgd", learning_rate=tau, steps=inner_steps)
        generator = step_generator(0, number, "difference")
        self._batches = draw(
            run.data, run.settings, self._attacker, generator, None, sampler=Independent(), step=number, inner_before=0
        )

    def problem(self, outer: Precision = "float32") -> MetaProblem:
        """With Eq. 3's losses after the attack in the precision ``outer``."""
        run = self._run
        whole, reduced = (
            meta_problem(model, [self._batches], self._attacker, run.settings, theta=run.theta)
            for model in (run.model, run.model.in_precision(outer))
        )
        return replace(whole, outer=reduced.outer, keep_final=False)


def rows(run: Algorithm1, drawn: Sequence[Drawn], *, imitated: bool) -> Iterator[tuple[str, float]]:
    """What is compared and how far off it is."""
    theta, problems = run.theta, [one.problem() for one in drawn]
    with float32_products("ieee"):
        exact = [DoubleBackward()(one, theta).gradient for one in problems]
        to_first_order = [FirstOrder()(one, theta).gradient for one in problems]
    kinds: tuple[Products, Products] = ("ieee", "tf32")
    for kind in kinds:
        with products(kind, imitated=imitated):
            found = [FirstOrder()(one, theta).gradient for one in problems]
            yield f"{kind} | first order, against itself with ieee", worst(found, to_first_order)
            for step in STEPS:
                mode = GradientDifference(relative_step=step, precision=kind)
                yield (
                    f"{kind} | difference, step {step:.0e}",
                    worst([mode(one, theta).gradient for one in problems], exact),
                )
    outers: tuple[Precision, Precision] = ("bf16", "fp16")
    for outer in outers:
        found = [DoubleBackward()(one.problem(outer), theta).gradient for one in drawn]
        yield f"{outer} after the attack | double backward", worst(found, exact)
    yield "ieee | first order", worst(to_first_order, exact)


@contextmanager
def products(kind: Products, *, imitated: bool) -> Iterator[None]:
    """Float32's products as ``kind`` says, on a device that has no TF32 by rounding."""
    rounding: AbstractContextManager[Any] = Rounded() if imitated and kind == "tf32" else nullcontext()
    # Fused attention is one operation to a dispatcher; the plain one is made of products.
    attention = sdpa_kernel(SDPBackend.MATH) if imitated and kind == "tf32" else nullcontext()
    with float32_products(kind), rounding, attention:
        yield


class Rounded(TorchDispatchMode):
    """Rounds the operands of every product to TF32's 11 bits."""

    PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward"})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in self.PRODUCTS:
            args = tuple(
                to_tf32(arg) if isinstance(arg, Tensor) and arg.dtype == torch.float32 else arg for arg in args
            )
        return func(*args, **(kwargs or {}))


def to_tf32(x: Tensor) -> Tensor:
    """Nearest, ties to even, in the 13 bits that TF32 lacks."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def worst(found: list[Params], expected: list[Params]) -> float:
    """The largest ||g - g_ref|| / ||g_ref||."""
    return max(norm(add(g, r, -1.0)) / norm(r) for g, r in zip(found, expected, strict=True))


if __name__ == "__main__":
    main()
