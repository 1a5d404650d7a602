"""Where an outer step of Algorithm 1 spends its time on Canvas, and what it makes the machine wait for.

    python benchmarks/step_profile.py --out benchmarks/step_profile.md

Erases the knife by ESD-u-1 with the meta objective under PyTorch's profiler: the share of each kind of operation in the
processor's time, and, per step, how often a picture or a prompt is encoded (never, or the loop encodes twice), how
often numbers are read back from the device, each of which makes a GPU wait.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from metaunlearn.canvas.tasks import task_for
from metaunlearn.data.concepts import prompts_for
from metaunlearn.erasure.interface import ErasureTask, OptimisedMethod
from metaunlearn.erasure.prepare import prepare
from metaunlearn.erasure.registry import configure
from metaunlearn.files import write_atomic
from metaunlearn.meta.train import Algorithm1
from metaunlearn.models import adapt, own_pipeline
from metaunlearn.recipe import read_recipe

KINDS = {
    "convolutions": ("convolution", "mkldnn_conv", "cudnn_conv"),
    "matrix products": ("addmm", "aten::mm", "bmm", "linear"),
    "attention": ("scaled_dot_product", "softmax"),
    "normalisation": ("group_norm", "layer_norm"),
    "activations": ("silu", "gelu"),
    "arithmetic on parameters": ("_foreach",),
    "copies and joins": ("copy_", "aten::cat", "clone", "contiguous"),
}
"""By part of an operator's name, first match first; the rest is element-wise arithmetic and book-keeping."""


def begun(method: str, overrides: list[str], device: str) -> Algorithm1:
    """A run at its start, with few pictures: how many there are costs a step nothing."""
    model = adapt(own_pipeline("canvas"), device)
    few = ["forget_images=16", "retain_images=32", "bank_trajectories=16", "diagnostics_every=0"]
    chosen = configure(method, read_recipe("small"), [*few, *overrides])
    if not isinstance(chosen.method, OptimisedMethod):
        raise SystemExit("--method: an optimised one (esd-..., sdd).")
    prompts = prompts_for(model.pipeline, [task_for("knife").concept])
    data = prepare(model, prompts, {}, chosen.settings, 0, None, None)
    task = ErasureTask(model=model, prompts=prompts, settings=chosen.settings, seed=0)
    trained = chosen.method.trained(model)
    return Algorithm1(model, data, chosen.method.begin(task), chosen.settings, trained=trained, meta=True, seed=0)


def kind_of(operator: str) -> str:
    """Which of ``KINDS`` it belongs to."""
    return next((kind for kind, parts in KINDS.items() if any(part in operator for part in parts)), "other")


def read_backs(step: Callable[[], object]) -> int:
    """How often ``step`` asks for the numbers in a tensor, one or many at once."""
    count = 0
    asking = ("item", "tolist", "__bool__", "__float__", "__int__")
    before = {name: getattr(Tensor, name) for name in asking}

    def counted(name: str) -> Callable[..., Any]:
        def ask(tensor: Tensor, *arguments: Any) -> Any:
            nonlocal count
            count += 1
            return before[name](tensor, *arguments)

        return ask

    try:
        for name in asking:
            setattr(Tensor, name, counted(name))
        step()
    finally:
        for name, method in before.items():
            setattr(Tensor, name, method)
    return count


def encodings(run: Algorithm1, counts: Counter[str]) -> Iterable[torch.utils.hooks.RemovableHandle]:
    """Hooks that count what the autoencoder and the text encoder are asked for."""
    pipeline = run.model.pipeline
    for name, part in (("pictures", pipeline.vae.encoder), ("prompts", pipeline.text_encoder)):
        yield part.register_forward_hook(lambda *_, name=name: counts.update([name]))


def main() -> None:
    """Profile and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/step_profile.md"))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--method", default="esd-u-1")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    run = begun(options.method, options.overrides, options.device)
    run.take_step()
    counts: Counter[str] = Counter()
    hooks = list(encodings(run, counts))
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (options.device != "cpu")
    with profile(activities=activities) as profiled:
        for _ in range(options.steps):
            run.take_step()
    for hook in hooks:
        hook.remove()
    time: Counter[str] = Counter()
    for event in profiled.key_averages():
        own = event.self_device_time_total if options.device != "cpu" else event.self_cpu_time_total
        time[kind_of(event.key)] += own
    read_back = read_backs(run.take_step)
    whole = sum(time.values())
    lines = [
        "# Where a step spends its time",
        "",
        f"`python benchmarks/step_profile.py`: Canvas, knife, {options.method} with the meta objective "
        f"({run.settings.meta_gradient}, M = {run.settings.inner_steps}, batches of {run.settings.batch_size}), "
        f"{options.steps} steps; torch {torch.__version__}, {options.device}, {torch.get_num_threads()} thread(s).",
        "",
        "| kind of operation | share of the time |",
        "|---|---|",
        *(f"| {kind} | {100 * share / whole:.1f} % |" for kind, share in time.most_common()),
        "",
        "| per step | |",
        "|---|---|",
        f"| pictures encoded | {counts['pictures'] / options.steps:g} |",
        f"| prompts encoded | {counts['prompts'] / options.steps:g} |",
        f"| times that the host waits for numbers of the device | {read_back} |",
        "",
    ]
    write_atomic(options.out, "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
