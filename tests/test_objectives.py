"""Objectives by name, against the equations written out in float64: the path, the forget loss, the margin, weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import Call
from meta_problems import error, mlp
from metaunlearn.conditioning import Conditioning
from metaunlearn.data.concepts import ConceptPrompts
from metaunlearn.data.latents import ErasureData, LatentSet
from metaunlearn.erasing import erase
from metaunlearn.erasure.interface import ErasureTask
from metaunlearn.erasure.registry import configure, refuse_unheard
from metaunlearn.errors import UserError
from metaunlearn.meta.alignment import DRAWS, aligned, mean_positive, prompt_cosines, weight
from metaunlearn.meta.batches import draw_retained
from metaunlearn.meta.hypergradient import DoubleBackward, FirstOrder, GradientDifference, MetaProblem
from metaunlearn.meta.margin import Margin
from metaunlearn.meta.optimizers import OPTIMIZERS
from metaunlearn.meta.train import Algorithm1
from metaunlearn.parameters import Params, add, scale
from metaunlearn.recipe import read_recipe
from metaunlearn.unheard import refuse_ignored
from test_algorithm1 import EXACT, PAPER, l_dm, l_forget, paper_settings
from test_inner_optimizers import attacked, unrolled
from toy_denoiser import ToyDenoiser, drawn, latent_set, toy_run, toy_settings

SMALL = read_recipe("small")

# --- The mean along the path -----------------------------------------------------------------------------------------


def unrolled_along_path(problem: MetaProblem, name: str, theta: Params, *, constant_gradients: bool = False) -> Params:
    """The mean, over m, of the unrolled gradients of attacks that end after m steps."""
    count = len(problem.inner_losses)
    total: Params | None = None
    for m in range(1, count + 1):
        shorter = replace(problem, inner_losses=problem.inner_losses[:m])
        gradient = unrolled(shorter, name, theta, constant_gradients=constant_gradients)
        total = gradient if total is None else add(total, gradient)
    assert total is not None
    return scale(total, 1 / count)


@pytest.mark.parametrize("part", ["all", "some"])
@pytest.mark.parametrize("inner_steps", [1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_gradient_along_the_path(name: str, inner_steps: int, part: str) -> None:
    """The tolerances are those of the gradient at the end (docs/numerics.md)."""
    end, theta = attacked(mlp, name, inner_steps, part)
    problem = replace(end, along_path=True)
    expected = unrolled_along_path(problem, name, theta)
    for mode, tolerance in ((DoubleBackward(), 1e-12), (GradientDifference(), 3e-9)):
        assert error(mode(problem, theta).gradient, expected) <= tolerance, mode
    constant = unrolled_along_path(problem, name, theta, constant_gradients=True)
    assert error(FirstOrder()(problem, theta).gradient, constant) <= 1e-12
    both = DoubleBackward()(replace(problem, with_first_order=True), theta).first_order
    assert both is not None
    assert error(both, constant) <= 1e-12
    # The test can tell: the loss at the end alone has another gradient, and so has first order.
    assert (error(unrolled(end, name, theta), expected) > 1e-4) == (inner_steps > 1)
    assert error(constant, expected) > 1e-4


@pytest.mark.parametrize("mode", [FirstOrder(), DoubleBackward(), GradientDifference()], ids=str)
def test_a_path_of_one_step_is_its_end(mode: FirstOrder | DoubleBackward | GradientDifference) -> None:
    problem, theta = attacked(mlp, "adamw", 1, "all")
    end, path = mode(problem, theta), mode(replace(problem, along_path=True), theta)
    assert all(torch.equal(p, path.gradient[name]) for name, p in end.gradient.items())
    assert end.outer_value == path.outer_value


def test_the_value_along_the_path() -> None:
    problem, theta = attacked(mlp, "sgd", 3, "all")
    path = problem.inner.run(theta, problem.inner_losses).thetas
    expected = sum(float(problem.outer(path[m])) for m in (1, 2, 3)) / 3
    for mode in (FirstOrder(), DoubleBackward()):
        assert mode(replace(problem, along_path=True), theta).outer_value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("mode", "most"), [(FirstOrder(), 1), (DoubleBackward(), 4), (GradientDifference(), 4)])
def test_the_path_stores_no_more_sets_than_the_end(mode: FirstOrder | DoubleBackward, most: int) -> None:
    """theta_0 .. theta_3, or one at a time to first order; SGD stores no gradients."""
    sizes: list[int] = []

    class Counted(list[Params]):
        def append(self, params: Params) -> None:
            super().append(params)
            sizes.append(len(self))

    problem, theta = attacked(mlp, "sgd", 3, "all")
    for along in (False, True):
        sizes.clear()
        inner = replace(problem.inner, store=lambda _: Counted())
        mode(replace(problem, inner=inner, along_path=along), theta)
        assert max(sizes) == most


# --- The outer gradient of Algorithm 1 -------------------------------------------------------------------------------


def written_out(run: Algorithm1, displacement: Params | None = None) -> Params:
    """g = gamma_1 grad [L_forget + lambda L_retain] + gamma_2 grad L_meta by definition, unrolled in one graph.

    The attacker starts at theta + ``displacement``, a constant.
    """
    s, batches = run.settings, drawn(run)
    theta = {name: p.clone().requires_grad_() for name, p in run.theta.items()}
    thetas = [add(theta, displacement) if displacement else theta]
    for batch in batches.inner:
        at = thetas[-1]
        steps = torch.autograd.grad(l_dm(at, batch), list(at.values()), create_graph=True)
        thetas.append({name: p - s.inner_learning_rate * g for (name, p), g in zip(at.items(), steps, strict=True)})

    def after(theta_m: Params) -> Tensor:
        concept = -l_dm(theta_m, batches.outer)
        if s.post_attack_loss == "forget":
            concept = l_forget(theta_m, batches)
        return concept + s.zeta * of_retained(theta_m)

    def of_retained(theta_m: Params) -> Tensor:
        if s.zeta_margin is None:
            direct = l_dm(theta, batches.direct.batch) if s.direct_term else 0.0
            return direct - l_dm(theta_m, batches.meta_retain.batch)
        total = torch.zeros((), dtype=torch.float64)
        for i in range(len(batches.meta_retain.batch.t)):
            row = slice(i, i + 1)
            before = l_dm(theta, batches.meta_retain.batch, row)
            before = before if s.direct_term else before.detach()
            short = s.zeta_margin + before - l_dm(theta_m, batches.meta_retain.batch, row)
            total = total + (short if short > 0 else 0.0)
        return total / len(batches.meta_retain.batch.t)

    l_meta = sum(map(after, thetas[1:])) / len(thetas[1:]) if s.meta_loss == "path" else after(thetas[-1])
    l_unlearn = l_forget(theta, batches) + s.retain_weight * l_dm(theta, batches.retain.batch)
    g = s.gamma1 * l_unlearn + s.gamma2 * l_meta
    return dict(zip(theta, torch.autograd.grad(g, list(theta.values())), strict=True))


def attacked_from(run: Algorithm1, start: Params) -> Params:
    """theta_M of the run's next step, by hand."""
    at = start
    for batch in drawn(run).inner:
        leaves = {name: p.clone().requires_grad_() for name, p in at.items()}
        steps = torch.autograd.grad(l_dm(leaves, batch), list(leaves.values()))
        at = {n: p - run.settings.inner_learning_rate * g for (n, p), g in zip(at.items(), steps, strict=True)}
    return at


def differences(run: Algorithm1) -> Tensor:
    """l_i(theta_M) - l_i(theta) of the retained pictures of the next step."""
    at, kept = attacked_from(run, run.theta), drawn(run).meta_retain.batch
    rows = [slice(i, i + 1) for i in range(len(kept.t))]
    return torch.stack([l_dm(at, kept, row) - l_dm(run.theta, kept, row) for row in rows])


STRONG = ("inner_learning_rate=1.0", "batch_size=8")
"""An attack after which some retained pictures are much worse than before, and some are not."""
MARGIN = "zeta_margin=0.05"

NAMED = [
    ("meta_loss=path",),
    ("post_attack_loss=forget",),
    (MARGIN,),
    (MARGIN, "direct_term=false"),
    (MARGIN, "meta_retain=related"),
    ("meta_loss=path", "post_attack_loss=forget", MARGIN),
    ("meta_loss=path", "meta_retain=unrelated", "common_noise=false"),
]


@pytest.mark.parametrize("more", NAMED, ids=" ".join)
def test_the_outer_gradient_is_the_equation(more: tuple[str, ...]) -> None:
    run = toy_run(paper_settings(*STRONG, *more))
    expected = written_out(run)
    assert error(run.outer_gradient()[0], expected) < EXACT
    # The test can tell one from the other.
    assert error(toy_run(paper_settings(*STRONG, *more[1:])).outer_gradient()[0], expected) > 1e-4


@pytest.mark.parametrize("mode", ["first-order", "gradient-difference"])
def test_named_objectives_work_in_every_mode(mode: str) -> None:
    """Both are near the exact gradient where the attack's steps are small."""
    more = ("meta_loss=path", "post_attack_loss=forget", MARGIN, f"meta_gradient={mode}", "inner_learning_rate=1e-4")
    run = toy_run(paper_settings(*more))
    assert error(run.outer_gradient()[0], written_out(run)) < (1e-3 if mode == "first-order" else 1e-8)


def test_the_margin_lies_among_the_pictures() -> None:
    """Else the tests above would not see it: some pictures are beyond it, some short of it."""
    found = differences(toy_run(paper_settings(*STRONG, MARGIN))) > 0.05
    assert found.any()
    assert not found.all()


def test_beyond_the_margin_there_is_no_gradient_in_either_term() -> None:
    """Three pictures by hand, of which the last is beyond; and a margin above all differences is as none."""
    run = toy_run(paper_settings(*STRONG))
    far = run.settings.model_copy(update={"zeta_margin": differences(run).max().item() + 1})
    assert error(toy_run(far).outer_gradient()[0], run.outer_gradient()[0]) < EXACT
    margin = Margin(0.3, torch.tensor([1.0, 1.0, 1.0]))
    after = torch.tensor([0.5, 1.2, 2.0], requires_grad=True)
    torch.testing.assert_close(margin.shortfall(after), torch.tensor([0.8, 0.1, 0.0]))
    assert margin.active(after).tolist() == [1, 1, 0]
    margin.shortfall(after).sum().backward()
    assert after.grad is not None
    assert after.grad.tolist() == [-1, -1, 0]


def test_diagnosed_first_order_has_the_margins_direct_term() -> None:
    """At tau = 0 both meta-gradients are the same with the same direct term: no error, cosine 1."""
    still = toy_run(paper_settings(MARGIN, inner_learning_rate=0.0)).outer_gradient()[1]["diagnostics"]["first_order"]
    assert still == pytest.approx({"cosine": 1.0, "relative_error": 0.0}, abs=1e-9)


# --- Weights by alignment --------------------------------------------------------------------------------------------


def test_weights_by_hand() -> None:
    """Positive cosines 0.5, 0 and 0.1, 0.3: means 0.25 and 0.2, mean c 0.225, so w = 1/2 + c / 0.45; of mean 1."""
    related, unrelated = torch.tensor([0.5, -0.2]).double(), torch.tensor([0.1, 0.3]).double()
    mean = mean_positive(related, unrelated)
    assert mean == pytest.approx(0.225)
    found = torch.stack([weight(related, mean), weight(unrelated, mean)])
    torch.testing.assert_close(found, 0.5 + torch.tensor([[0.5, 0.0], [0.1, 0.3]]).double() / 0.45)
    assert found.mean().item() == pytest.approx(1.0)
    assert weight(-related.abs(), mean_positive(-related.abs(), -unrelated)).tolist() == [1.0, 1.0]


def two_prompts(seed: int) -> LatentSet:
    """30 pictures, the first 20 of one prompt and 10 of another."""
    g = torch.Generator().manual_seed(seed + 100)
    prompts = Conditioning(torch.randn((2, 2, 2), generator=g).double())
    return replace(
        latent_set(seed, 30), cond=prompts, prompt_of=torch.tensor([0] * 20 + [1] * 10), texts=("one", "other")
    )


def toy_task(tmp_path: Path, *more: str) -> tuple[ErasureTask, ErasureData]:
    data = ErasureData(forget=latent_set(1, 30), related=two_prompts(2), unrelated=two_prompts(3))
    prompts = ConceptPrompts(forget=("f",), related=("one", "other"), unrelated=("one", "other"))
    settings = toy_settings("batch_size=4", *more)
    model = ToyDenoiser()
    return ErasureTask(model=model, prompts=prompts, settings=settings, seed=5, cache=tmp_path), data  # type: ignore[arg-type]


def test_cosines_are_those_of_the_gradients(tmp_path: Path) -> None:
    """By autograd on the definition, and only over what is trained."""
    from metaunlearn.checkpoint import step_generator

    task, data = toy_task(tmp_path)

    def slope(pictures: LatentSet, rows: list[int]) -> Tensor:
        batch = pictures.batch(torch.tensor(rows), step_generator(5, 0, "alignment"))
        theta = {name: p.requires_grad_() for name, p in ToyDenoiser().parameters().items()}
        return torch.autograd.grad(l_dm(theta, batch), theta["out"])[0].flatten()

    concept = slope(data.forget, [30 * i // DRAWS for i in range(DRAWS)])
    found = prompt_cosines(task, data, {"out"})
    for kind in ("related", "unrelated"):
        for prompt, (first, count) in enumerate(((0, 20), (20, 10))):
            own = slope(getattr(data, kind), [first + count * i // DRAWS for i in range(DRAWS)])
            expected = (own @ concept / own.norm() / concept.norm()).item()
            assert found[kind][prompt].item() == pytest.approx(expected, rel=1e-10)


def test_l_retain_is_weighted_picture_by_picture(tmp_path: Path) -> None:
    task, data = toy_task(tmp_path, "retain_loss=denoising", "retain_weight=0.9", "retain_weighting=alignment")
    weighed, report = aligned(task, data, {"out"})
    run = Algorithm1(
        task.model, weighed, None, task.settings, trained=ToyDenoiser().parameters().keys(), meta=False, seed=5
    )  # fmt: skip
    kept = drawn(run).retain
    assert kept.weights is not None
    theta = {name: p.clone().requires_grad_() for name, p in run.theta.items()}
    losses = [w * l_dm(theta, kept.batch, slice(i, i + 1)) for i, w in enumerate(kept.weights)]
    expected = torch.autograd.grad(run.settings.gamma1 * 0.9 * torch.stack(losses).mean(), list(theta.values()))
    assert error(run.outer_gradient()[0], dict(zip(theta, expected, strict=True))) < EXACT
    halves = kept.parts(2)
    assert torch.equal(torch.cat([half.weights[:1] for half in halves]), kept.weights[:2])  # type: ignore[index]
    shown = {row["prompt"]: row["weight"] for row in report["retain_weighting"]["related"]}
    assert weighed.related.weights is not None
    assert weighed.related.weights[[0, 29]].tolist() == pytest.approx([shown["one"], shown["other"]], rel=1e-6)


def test_a_resumed_run_has_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worked out again they are the same bits; with the cache they are not worked out again."""
    task, data = toy_task(tmp_path)
    first, _ = aligned(task, data, {"out"})
    again, _ = aligned(replace(task, cache=None), data, {"out"})
    monkeypatch.setattr("metaunlearn.meta.alignment.prompt_cosines", None)
    cached, _ = aligned(task, data, {"out"})
    for other in (again, cached):
        assert torch.equal(first.related.weights, other.related.weights)  # type: ignore[arg-type]
        assert torch.equal(first.unrelated.weights, other.unrelated.weights)  # type: ignore[arg-type]


# --- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("zeta_margin=0.1", "zeta=0"), "zeta_margin .* would be ignored, because zeta is 0"),
        (("retain_weighting=alignment", "retain_weight=0"), "because retain_weight is 0"),
        (("heal_steps=3", "retain_weight=0"), "because retain_weight is 0"),
        (("heal_learning_rate=1e-5",), "because heal_steps is 0"),
        (("meta_retain=related", "zeta=0"), "because zeta is 0"),
        (("retain_loss=distillation", "retain_weight=0"), "because retain_weight is 0"),
        (("meta_loss=path", "gamma2=0"), "meta_loss .* because gamma2 is 0"),
        (("post_attack_loss=forget", "gamma2=0"), "because gamma2 is 0"),
        (("zeta_margin=0.1", "gamma2=0"), "because gamma2 is 0"),
        (("common_noise=false", "zeta=0"), "common_noise .* because zeta is 0"),
        (("direct_term=false", "zeta=0"), "because zeta is 0"),
        (("inner_momentum=0.5", "inner_optimizer=adamw"), "inner_momentum .*attacker's optimizer is adamw. Choose mom"),
        (("inner_eps_root=1e-6", "inner_optimizer=sgd"), "optimizer is sgd. Choose adam or adamw"),
    ],
)
def test_what_would_go_unheard_is_refused(overrides: tuple[str, ...], message: str) -> None:
    settings = toy_settings(*overrides)
    with pytest.raises(UserError, match=message):
        refuse_ignored(settings, overrides)
    refuse_ignored(settings, overrides[1:])  # A recipe may have said the first.


def test_a_margin_without_common_noise_is_refused() -> None:
    with pytest.raises(UserError, match=r"zeta_margin compares .*common_noise=true, or zeta_margin=none"):
        toy_settings("zeta_margin=0.1", "common_noise=false")
    assert toy_settings("zeta_margin=none", "common_noise=false").zeta_margin is None


def test_a_call_without_the_meta_objective_refuses_what_is_about_it(
    tiny_model: Path, tmp_path: Path, call: Call
) -> None:
    for key in ("meta_loss=path", "post_attack_loss=forget", "zeta_margin=1", "inner_horizon=9"):
        with pytest.raises(UserError, match="--no-meta"):
            refuse_unheard(configure("esd-u-1", SMALL), [key], meta=False)
        refuse_unheard(configure("esd-u-1", SMALL), [key], meta=True)
    refuse_unheard(configure("esd-u-1", SMALL), ["meta_loss=end", "zeta_margin=none", "heal_steps=3"], meta=False)
    with pytest.raises(UserError, match="trains nothing"):
        refuse_unheard(configure("uce", SMALL), ["heal_steps=3"], meta=False)
    with pytest.raises(UserError, match=r"steps \(--set steps=...\) would be ignored"):
        refuse_unheard(configure("uce", SMALL), ["steps=10"], meta=False)
    out = tmp_path / "out"
    refused = call("erase", tiny_model, "--concept", "zebra", "--no-meta", "--set", "meta_loss=path", "--out", out)
    assert refused.code == 2
    assert "meta_loss" in refused.err
    assert not out.exists()


def test_a_closed_form_method_has_no_forget_loss_after_the_attack(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="UCE or RECE, has none"):
        erase(tiny_model, ["zebra"], method="uce", overrides=["post_attack_loss=forget"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_paper_is_the_default() -> None:
    """What ``papers_gradient`` of test_algorithm1 is compared with has none of these."""
    settings = paper_settings()
    assert (settings.meta_loss, settings.post_attack_loss, settings.zeta_margin) == ("end", "denoising", None)
    assert settings.inner_horizon is None
    assert (settings.retain_weighting, settings.heal_steps, settings.total_steps) == ("none", 0, settings.steps)
    assert PAPER["zeta"] == settings.zeta


def test_either_kind_counts_half_however_many_its_pictures() -> None:
    """Means 0.6 of one related picture and 0.2 of three unrelated ones: 0.4, and not the mean of all four, 0.3."""
    related, unrelated = torch.tensor([0.6]).double(), torch.tensor([0.1, 0.3, 0.2]).double()
    assert mean_positive(related, unrelated) == pytest.approx(0.4)


def test_the_mean_weight_of_a_batch_is_one(tmp_path: Path) -> None:
    """Over pictures, half of either kind: of 30 pictures 20 have the first prompt, so a mean over prompts is not it."""
    task, data = toy_task(tmp_path)
    weighed = aligned(task, data, {"out"}).data
    assert weighed.related.weights is not None
    assert weighed.unrelated.weights is not None
    means = [kept.weights.mean().item() for kept in (weighed.related, weighed.unrelated)]  # type: ignore[union-attr]
    assert sum(means) / 2 == pytest.approx(1.0, rel=1e-6)
    assert len(set(weighed.related.weights.tolist() + weighed.unrelated.weights.tolist())) > 2


def test_prompts_that_batches_drop_are_weighed_as_they_are(tmp_path: Path) -> None:
    task, data = toy_task(tmp_path)
    expected = prompt_cosines(task, data, {"out"})
    empty = Conditioning(torch.zeros(1, 2, 2).double())
    dropping = {kind: replace(getattr(data, kind), empty=empty, dropout=0.9) for kind in ("related", "unrelated")}
    found: Params = prompt_cosines(task, replace(data, **dropping), {"out"})
    assert all(torch.equal(found[kind], cosines) for kind, cosines in expected.items())


def test_a_batch_has_the_weights_of_its_own_pictures(tmp_path: Path) -> None:
    task, data = toy_task(tmp_path)
    numbered = replace(data, related=replace(data.related, weights=torch.arange(30.0)),
                       unrelated=replace(data.unrelated, weights=100 + torch.arange(30.0)))  # fmt: skip
    rows = {"related retain": torch.tensor([7, 3]), "unrelated retain": torch.tensor([20, 11])}
    kept = draw_retained(
        numbered, task.settings, torch.Generator().manual_seed(0), sampler=lambda stream, *_: rows[stream], step=0
    )
    assert kept.weights is not None
    assert kept.weights.tolist() == [7, 3, 120, 111]
