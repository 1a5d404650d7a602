"""How noisy is the meta-gradient, and what do stratified timesteps and common random numbers take away?

    OMP_NUM_THREADS=1 python benchmarks/variance.py

Canvas after a few steps of erasing a concept with the recipe ``small-unbounded``: grad L_meta of Eq. 3 at that point,
direct term included, over the parameters that the method trains, for many draws of pictures, noise and timesteps; by
four ways to draw them. Its expectation g is the same for all four, so one estimate of ||g||^2 from pairs of different
draws (which is unbiased, unlike the norm of a mean) serves the four relative variances E ||g_i - g||^2 / ||g||^2. The
spread in the table is a jackknife standard error.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from metaunlearn.checkpoint import step_generator
from metaunlearn.config import EraseSettings
from metaunlearn.data.concepts import prompts_for
from metaunlearn.data.latents import ErasureData
from metaunlearn.data.sampling import Independent
from metaunlearn.erasure.interface import ErasureTask, OptimisedMethod
from metaunlearn.erasure.prepare import prepare
from metaunlearn.erasure.registry import configure
from metaunlearn.files import write_atomic
from metaunlearn.meta.batches import draw, draw_attacker
from metaunlearn.meta.hypergradient import MetaGradientMode
from metaunlearn.meta.objective import loss_on_retained, meta_problem, zeta_weights
from metaunlearn.meta.train import Algorithm1
from metaunlearn.models import TextToImageModel, adapt, own_pipeline
from metaunlearn.parameters import Params, value_and_gradient
from metaunlearn.recipe import read_recipe

WAYS = {
    "stratified timesteps, common noise": {"stratified": True, "common_noise": True},
    "stratified timesteps, independent noise": {"stratified": True, "common_noise": False},
    "independent timesteps, common noise": {"stratified": False, "common_noise": True},
    "independent timesteps, independent noise": {"stratified": False, "common_noise": False},
}


def main() -> None:
    """Erase a little, then measure; print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concept", default="knife")
    parser.add_argument("--method", default="esd-u-1")
    parser.add_argument("--steps", type=int, default=10, help="of erasing before the measurement")
    parser.add_argument("--draws", type=int, default=64)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="beside the recipe small")
    parser.add_argument("--out", type=Path, default=Path("runs/variance.md"))
    options = parser.parse_args()

    began = time.monotonic()
    overrides = ["forget_images=48", "retain_images=48", "bank_trajectories=16", *options.set]
    run = erased(options.concept, options.method, options.steps, overrides)
    print(f"erased for {options.steps} steps, {time.monotonic() - began:.0f} s", flush=True)
    mode = run.mode()
    assert mode is not None
    products, together = {}, torch.zeros(())
    for way, keys in WAYS.items():
        settings = run.settings.model_copy(update=keys)
        draws = torch.stack(
            [
                meta_gradient(run.model, run.data, settings, mode, run.theta, run.trained, number)
                for number in range(options.draws)
            ]
        )
        # The vectors of one way are a gigabyte; what is asked of them fits in their products and their mean.
        products[way] = (draws @ draws.T).double()
        together = together + draws / len(WAYS)
        del draws
        print(f"{way}: {time.monotonic() - began:.0f} s", flush=True)
    lines = table(products, squared_expectation(together))
    header = f"{options.concept}, {options.method}, {options.steps} steps, {options.draws} draws, {overrides}"
    write_atomic(options.out, "\n".join([header, "", *lines]) + "\n")
    print("", *lines, sep="\n")


def erased(concept: str, method: str, steps: int, overrides: list[str], device: str = "cpu") -> Algorithm1:
    """Canvas after ``steps`` outer steps: the run holds its parameters, data and settings."""
    model = adapt(own_pipeline("canvas"), device)
    chosen = configure(method, read_recipe("small-unbounded"), overrides)
    if not isinstance(chosen.method, OptimisedMethod):
        raise SystemExit("--method: an optimised one (esd-..., sdd).")
    prompts = prompts_for(model.pipeline, [concept])
    data = prepare(model, prompts, {}, chosen.settings, 0, None, None)
    task = ErasureTask(model=model, prompts=prompts, settings=chosen.settings, seed=0)
    run = Algorithm1(
        model, data, chosen.method.begin(task), chosen.settings,
        trained=chosen.method.trained(model), meta=True, seed=0,
    )  # fmt: skip
    # All of the recipe's steps are planned, so that the learning rate is that of its beginning.
    for _ in range(steps):
        run.take_step()
    return run


def meta_gradient(
    model: TextToImageModel,
    data: ErasureData,
    settings: EraseSettings,
    mode: MetaGradientMode,
    theta: Params,
    trained: list[str],
    number: int,
) -> Tensor:
    """grad L_meta on draw ``number``, over ``trained``, as one vector."""
    generator = step_generator(0, number, "variance")
    attacker = draw_attacker(settings.simulated, generator)
    batches = draw(data, settings, attacker, generator, None, sampler=Independent(), step=number, inner_before=0)
    found = mode(meta_problem(model, [batches], attacker, settings, theta=theta), theta).gradient
    direct = value_and_gradient(
        loss_on_retained(model, batches.direct, zeta_weights(settings)), theta, trained
    ).gradient
    return torch.cat([(found[name] + settings.zeta * direct[name]).flatten() for name in trained])


def table(products: dict[str, Tensor], squared: float) -> list[str]:
    """Rows of markdown from each way's <g_i, g_j> (draws, draws) and ||E g||^2."""
    rows = []
    for way, gram in products.items():
        count = len(gram)
        others = [torch.cat([torch.arange(i), torch.arange(i + 1, count)]) for i in range(count)]
        left_out = torch.tensor([variance(gram[rest][:, rest]) for rest in others]) / squared
        error = ((count - 1) / count * (left_out - left_out.mean()).square().sum()).sqrt().item()
        rows.append(f"| {way} | {variance(gram) / squared:.2f} | {error:.2f} |")
    return ["| draws | relative variance of the meta-gradient | ± |", "|---|---|---|", *rows]


def variance(gram: Tensor) -> float:
    """E ||g_i - E g||^2, unbiased: (sum ||g_i||^2 - ||sum g_i||^2 / n) / (n - 1)."""
    count = len(gram)
    return float((gram.diagonal().sum() - gram.sum() / count) / (count - 1))


def squared_expectation(together: Tensor) -> float:
    """||E g||^2, unbiased: the mean of <g_i, g_j> over i != j, of rows that are the means over the four ways.

    Draws of one number see the same pictures whatever the way, so only pairs of different numbers are independent.
    """
    count = len(together)
    total = together.sum(dim=0, dtype=torch.float64).square().sum() - together.square().sum(dtype=torch.float64)
    return float(total / (count * (count - 1)))


if __name__ == "__main__":
    main()
