"""The phase after Algorithm 1's N steps: what it minimises, where it starts, and that it resumes bit for bit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import same_weights
from meta_problems import error
from metaunlearn.checkpoint import step_generator
from metaunlearn.erasing import erase
from metaunlearn.errors import RunError
from metaunlearn.meta.batches import draw_retained
from metaunlearn.meta.phases import learning_rate_at
from metaunlearn.meta.train import Algorithm1
from metaunlearn.parameters import Params, moved_average
from test_algorithm1 import EXACT, l_dm, paper_settings
from toy_denoiser import ToyForgetLoss, toy_run

HEAL = ("steps=3", "heal_steps=3", "heal_learning_rate=0.02", "learning_rate=0.01", "checkpoint_every=1")


class Teacher(ToyForgetLoss):
    """A forget loss whose teacher is the moving average of theta, and what is saved."""

    def __init__(self, theta: Params) -> None:
        self.average = {name: p.clone() for name, p in theta.items()}

    def after_step(self, theta: Params, step: int) -> None:
        self.average = moved_average(self.average, theta, 0.5)

    def result(self, theta: Params) -> Params:
        return theta | self.average

    def state(self) -> dict[str, Tensor]:
        return dict(self.average)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.average = dict(state)


def healed(*more: str, teacher: bool = False, meta: bool = True) -> Algorithm1:
    run = toy_run(paper_settings(*HEAL, *more), meta=meta)
    if teacher:
        run.forget = run.moving = Teacher(run.theta)
    return run


def until(run: Algorithm1, step: int) -> list[dict[str, Any]]:
    return [run.take_step() for _ in range(step - run.step)]


def copied(theta: Params) -> Params:
    return {name: p.clone() for name, p in theta.items()}


def test_learning_rates_of_both_phases() -> None:
    """0.02 (1 + cos(pi k / 3)) / 2 at k = 0, 1, 2 from step N on; without heal_learning_rate it starts at omega."""
    settings = paper_settings(*HEAL, "learning_rate_schedule=constant")
    found = [learning_rate_at(step, settings) for step in range(6)]
    assert found == pytest.approx([0.01] * 3 + [0.01 * (1 + math.cos(math.pi * k / 3)) for k in range(3)])
    unnamed = settings.model_copy(update={"heal_learning_rate": None})
    assert learning_rate_at(3, unnamed) == pytest.approx(0.01)


@pytest.mark.parametrize("more", [(), ("ema_decay=0.5",), ("accumulation=2",), ("retain_loss=distillation",)])
@pytest.mark.parametrize("teacher", [False, True])
def test_its_first_step_is_a_fresh_adamws_on_l_retain_alone(more: tuple[str, ...], teacher: bool) -> None:
    """From what the first phase would have saved: lambda grad L_retain, clipped, and one step of torch's AdamW."""
    run = healed(*more, teacher=teacher)
    until(run, 3)
    at = {name: p.detach().clone().requires_grad_() for name, p in run._result().items()}
    assert (error(at, run.theta) > 1e-3) == (teacher or "ema_decay=0.5" in more)
    generator = step_generator(0, 3, "heal")
    kept = draw_retained(run.data, run.settings, generator, sampler=run.sampler, step=3).batch
    loss = l_dm(at, kept)
    if run.teacher is not None:
        x_t = run.model.schedule.add_noise(kept.x_0, kept.eps, kept.t)
        own, other = (run.model.predict(theta, x_t, kept.t, kept.cond) for theta in (at, run.teacher))
        loss = (own - other).square().mean()
    (run.settings.retain_weight * loss).backward()
    gradient = {name: p.grad.clone() for name, p in at.items() if p.grad is not None}
    before = copied(at)
    record = run.take_step()
    assert record["phase"] == "heal"
    assert record["loss_retain"] == pytest.approx(loss.item(), rel=1e-12)
    assert "loss_forget" not in record
    assert "loss_meta_at_theta_m" not in record
    length = torch.nn.utils.clip_grad_norm_(list(at.values()), run.settings.max_gradient_norm)
    assert record["gradient_norm"] == pytest.approx(length.item(), rel=1e-12)
    torch.optim.AdamW(list(at.values()), lr=0.02, weight_decay=run.settings.weight_decay).step()
    moved = {name: (p - before[name]).detach() for name, p in at.items()}
    assert error({name: (p - before[name]).detach() for name, p in run.theta.items()}, moved) < 1e-8
    assert gradient.keys() == at.keys()


def test_it_lowers_l_retain_and_moves_what_is_trained_alone() -> None:
    run = healed("steps=1", "heal_steps=30", meta=False)
    run.trained = ["out"]
    run.optimizer = torch.optim.AdamW([run.theta["out"]])
    until(run, 1)
    before = copied(run.theta)
    records = until(run, 31)
    assert sum(r["loss_retain"] for r in records[-5:]) < sum(r["loss_retain"] for r in records[:5])
    assert not torch.equal(run.theta["out"], before["out"])
    assert all(torch.equal(p, before[name]) for name, p in run.theta.items() if name != "out")


@pytest.mark.parametrize("more", [(), ("ema_decay=0.5", "replacement=false")])
@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.parametrize("killed_after", [2, 3, 4, 6])
def test_it_resumes_bit_for_bit(more: tuple[str, ...], teacher: bool, killed_after: int, tmp_path: Path) -> None:
    """Before the border, on it, behind it, and at the end."""
    whole: list[dict[str, Any]] = []
    expected = healed(*more, teacher=teacher).run(None, whole.append)
    assert [record["step"] for record in whole] == [1, 2, 3, 4, 5, 6]
    assert [record.get("phase") for record in whole] == [None] * 3 + ["heal"] * 3
    state = tmp_path / "state.safetensors"
    first = healed(*more, teacher=teacher)
    until(first, killed_after)
    first.save(state)
    second = healed(*more, teacher=teacher)
    second.restore(state)
    rest: list[dict[str, Any]] = []
    found = second.run(state, rest.append)
    assert rest == whole[killed_after:]
    assert all(torch.equal(p, found[name]) for name, p in expected.items())


def test_without_it_the_first_phase_is_the_same_run() -> None:
    """The first N steps have the same bits with healing and without, and are followed by nothing."""
    short, long = healed("heal_steps=0", "heal_learning_rate=none"), healed()
    records: list[dict[str, Any]] = []
    result = short.run(None, records.append)
    assert until(long, 3) == records
    assert error(result, long.theta) < EXACT
    assert all(torch.equal(p, long.theta[name]) for name, p in result.items())


def test_a_whole_run_resumes_across_the_border(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken in the healing, it goes on from the state on the border; the retained prompts' weights are logged once."""
    overrides = [
        "steps=2", "heal_steps=2", "checkpoint_every=2", "forget_images=2", "retain_images=2", "bank_trajectories=2",
        "bank_steps=2", "batch_size=2", "inner_steps=1", "meta_loss=path", "post_attack_loss=forget",
        "retain_weighting=alignment", "zeta_margin=0.1",
    ]  # fmt: skip
    shown: list[tuple[str, int, int]] = []

    def run(out: Path, **options: Any) -> None:
        erase(
            tiny_model, ["zebra"], out=out, overrides=overrides, retain=["a chair"], related=["a horse"],
            progress=lambda *what: shown.append(what), **options,
        )  # fmt: skip

    run(tmp_path / "whole")
    assert [what for what in shown if what[0] in {"erasing", "healing"}] == [
        ("erasing", 1, 4), ("erasing", 2, 4), ("healing", 3, 4), ("healing", 4, 4),
    ]  # fmt: skip
    with monkeypatch.context() as patch:
        heal = Algorithm1.heal_gradient

        def breaking(self: Algorithm1) -> Any:
            if self.step == 3:
                raise RunError("broken")
            return heal(self)

        patch.setattr(Algorithm1, "heal_gradient", breaking)
        with pytest.raises(RunError, match="broken"):
            run(tmp_path / "cut")
    run(tmp_path / "cut", resume=True)
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "cut")]
    assert logs[0] == logs[1]
    records = [json.loads(line) for line in logs[0].splitlines()]
    assert [record["step"] for record in records] == [0, 1, 2, 3, 4]
    rows = records[0]["retain_weighting"]
    assert {row["prompt"] for row in rows["related"]} <= set(_templates("a horse"))
    assert {row["prompt"] for row in rows["unrelated"]} <= set(_templates("a chair"))


def _templates(text: str) -> list[str]:
    from metaunlearn.data.concepts import TEMPLATES

    return [template.format(text) for template in TEMPLATES]
