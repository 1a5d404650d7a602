"""Lines for a person."""

from __future__ import annotations

from typing import Any

from metaunlearn.doctor.advice import Advice
from metaunlearn.doctor.estimating import JobEstimate
from metaunlearn.doctor.machine import OPTIONAL, Machine

MEASURED = "measured on this machine"
COUNTED = "estimate by count, right to an order of magnitude"


def describe(machine: Machine, job: JobEstimate | None) -> list[str]:
    """Of the machine, and of a job."""
    memory = "memory unknown" if machine.memory_bytes is None else f"{machine.memory_bytes / 2**30:.1f} GiB of memory"
    lines = [
        f"Python {machine.python} on {machine.system}",
        f"{machine.cores} cores, {memory}, accelerators: {', '.join(machine.accelerators) or 'none'}",
        *(f"  {name:<18} {version or 'MISSING'}" for name, version in machine.packages.items()),
        *(f"  {name:<18} {version or _needed(name)}" for name, version in machine.optional.items()),
    ]
    return lines if job is None else [*lines, "", *_describe_job(job, len(machine.accelerators))]


def _needed(name: str) -> str:
    """For what a package that is not there is needed, and how to get it."""
    what, extra = OPTIONAL[name]
    return f"not installed; needed for {what}: pip install 'metaunlearn[{extra}]'"


def _describe_job(job: JobEstimate, accelerators: int) -> list[str]:
    s = job.settings
    inner_steps = ", ".join(str(m) for m in sorted({attacker.steps for attacker in s.simulated}))
    lines = [
        f"erasing from {job.model} (on {job.image_size} x {job.image_size} pixels), {job.method}, recipe {job.recipe}:",
        f"  parameters         {_count(job.denoiser_parameters)}, trained {_count(job.trained_parameters)}",
        f"  its own settings   {' '.join(f'{key}={_said(value)}' for key, value in job.method_settings.items())}",
        f"  an outer step      {job.gradients_per_step} gradients on {s.batch_size} pictures (M = {inner_steps})",
        f"  memory on {job.device:<8} about {_size(job.memory_bytes)} ({MEASURED if job.memory_measured else COUNTED})",
        f"  time on {job.device:<10} about {job.seconds_per_step:.2g} s a step, "
        f"{job.seconds / 60:.0f} min for {s.steps} steps and, before them, pictures (forget_images, retain_images) and "
        f"sampling paths (bank_trajectories) "
        f"({MEASURED if job.time_measured else COUNTED})",
    ]
    if job.available_bytes is not None and job.memory_bytes > job.available_bytes:
        lines += [
            f"  {job.device} has less memory than that: {_size(job.available_bytes)}.",
            *_advise(job, accelerators),
        ]
    elif job.free_bytes is not None and job.memory_bytes > job.free_bytes:
        lines += [f"  Only {_size(job.free_bytes)} of it is free now: end what holds the rest, or wait for it."]
    return lines


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:.1f} M" if parameters >= 1e6 else f"{parameters / 1e3:.1f} thousand"


def _said(value: Any) -> str:
    """As --set has it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else f"{value}"


def _advise(job: JobEstimate, accelerators: int) -> list[str]:
    if job.advice:
        lines = ["  Switch on, in this order, until it fits (what each saves; what is left with those above):"]
        lines += [_line(one, job.available_bytes) for one in job.advice]
    else:
        lines = ["  Everything that saves memory is on already: take a smaller model or another device (--device)."]
    if accelerators > 1 and job.device.startswith("cuda") and not job.settings.sharded:
        lines.append(
            f"  Or share its parameters out over {accelerators} accelerators, with --set sharded=true: "
            f"accelerate launch --multi_gpu --num_processes {accelerators} -m metaunlearn erase ..."
        )
    return lines


def _line(one: Advice, available: int | None) -> str:
    options = " ".join(f"--set {override}" for override in one.overrides)
    if one.saves_bytes is None:
        return f"    {options:<52} saves memory that no count knows; costs: {one.costs}"
    fits = available is not None and one.left_bytes <= available
    return (
        f"    {options:<52} saves {_size(one.saves_bytes)}, leaves {_size(one.left_bytes)}{', fits' if fits else ''}; "
        f"costs: {one.costs}"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
