"""How far off is an exact meta-gradient by gradient difference, by the length of its step and by its products?

    python benchmarks/difference_step.py [--device cuda] [--out FILE]

Canvas after a few steps of erasing a concept with the recipe ``small-unbounded``; a simulated attacker of M steps of
SGD. The reference is the double backward with products in float32's own 24 bits. Each figure is the worst over a few
draws of pictures, noise and timesteps: ||g - g_ref|| / ||g_ref||. The rows "first order" are for scale: the first says
what the products alone cost, the last what leaving the Hessian out does. Without CUDA there are no TF32 products.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from variance import erased

from metaunlearn.checkpoint import step_generator
from metaunlearn.config import Attacker
from metaunlearn.data.sampling import Independent
from metaunlearn.files import write_atomic
from metaunlearn.meta.batches import draw
from metaunlearn.meta.hypergradient import DoubleBackward, FirstOrder, GradientDifference, MetaProblem
from metaunlearn.meta.objective import meta_problem
from metaunlearn.meta.train import Algorithm1
from metaunlearn.models.precision import Products, float32_products
from metaunlearn.parameters import Params, add, norm

STEPS = (3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
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
    kinds: list[Products] = ["ieee", "tf32"] if options.device.startswith("cuda") else ["ieee"]
    run = erased(options.concept, "esd-u-1", options.erased, OVERRIDES, options.device)
    where = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    lines = [
        f"{where}, torch {torch.__version__}; {options.concept}, SGD at {options.tau}, {options.draws} draws", "",
        "| products | meta-gradient | " + " | ".join(f"M = {m}" for m in options.inner_steps) + " |",
        "|---|---|" + "---|" * len(options.inner_steps),
    ]  # fmt: skip
    columns = [
        dict(rows([problem(run, m, options.tau, number) for number in range(options.draws)], run.theta, kinds))
        for m in options.inner_steps
    ]
    lines += [f"| {name} | " + " | ".join(f"{column[name]:.1e}" for column in columns) + " |" for name in columns[0]]
    write_atomic(options.out, "\n".join(lines) + "\n")
    print("", *lines, sep="\n")


def problem(run: Algorithm1, inner_steps: int, tau: float, number: int) -> MetaProblem:
    """L_meta of draw ``number``."""
    attacker = Attacker(optimizer="sgd", learning_rate=tau, steps=inner_steps)
    generator = step_generator(0, number, "difference")
    batches = draw(
        run.data, run.settings, attacker, generator, None, sampler=Independent(), step=number, inner_before=0
    )
    return meta_problem(run.model, [batches], attacker, run.settings, theta=run.theta)


def rows(problems: list[MetaProblem], theta: Params, kinds: list[Products]) -> Iterator[tuple[str, float]]:
    """What is compared and how far off it is."""
    with float32_products("ieee"):
        exact = [DoubleBackward()(one, theta).gradient for one in problems]
        to_first_order = [FirstOrder()(one, theta).gradient for one in problems]
    for kind in kinds:
        with float32_products(kind):
            found = [FirstOrder()(one, theta).gradient for one in problems]
        yield f"{kind} | first order, against itself with ieee", worst(found, to_first_order)
        for step in STEPS:
            mode = GradientDifference(relative_step=step, precision=kind)
            yield (
                f"{kind} | difference, step {step:.0e}",
                worst([mode(replace(one, keep_final=False), theta).gradient for one in problems], exact),
            )
    yield "ieee | first order", worst(to_first_order, exact)


def worst(found: list[Params], expected: list[Params]) -> float:
    """The largest ||g - g_ref|| / ||g_ref||."""
    return max(norm(add(g, r, -1.0)) / norm(r) for g, r in zip(found, expected, strict=True))


if __name__ == "__main__":
    main()
