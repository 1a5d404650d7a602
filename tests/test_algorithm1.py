"""The outer gradient of Algorithm 1 in float64, against the paper's equations and the released code's written out.

Every weight's sign and scale is seen: each reference is also taken with one weight flipped, and must then be far off.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest
import torch
from torch import Tensor

from meta_problems import error
from metaunlearn.config import EraseSettings
from metaunlearn.diffusion import Batch
from metaunlearn.errors import UserError
from metaunlearn.meta.batches import OuterDraw, RetainBatch
from metaunlearn.meta.outer import clipped_step
from metaunlearn.meta.train import Algorithm1
from metaunlearn.parameters import Params, laid_out_like
from toy_denoiser import NAMES, TIMESTEPS, ToyDenoiser, drawn, toy_run, toy_settings

EXACT = 1e-12


def l_dm(theta: Params, batch: Batch, rows: slice = slice(None)) -> Tensor:
    """L_DM(theta; batch), from the definition: the mean over pictures and latent values of (eps - eps_theta)^2."""
    alpha_bar = torch.linspace(0.99, 0.02, TIMESTEPS)
    total, values = torch.zeros((), dtype=torch.float64), 0
    for i in range(len(batch.t))[rows]:
        x_0, cond, eps, t = batch.x_0[i], batch.cond[i : i + 1], batch.eps[i], batch.t[i]
        a = alpha_bar[t]
        x_t = a.sqrt().double() * x_0 + (1 - a).sqrt().double() * eps.double()
        answer = ToyDenoiser().predict(theta, x_t[None], t[None], cond)
        total = total + (answer - eps).square().sum()
        values += eps.numel()
    return total / values


def l_forget(theta: Params, batches: OuterDraw) -> Tensor:
    x_t, t, cond, target = batches.forget
    return (ToyDenoiser().predict(theta, x_t, t, cond) - target).square().mean()


def related(kept: RetainBatch) -> slice:
    return slice(0, kept.related)


def unrelated(kept: RetainBatch) -> slice:
    return slice(kept.related, None)


# --- The paper's objective -------------------------------------------------------------------------------------------

EPS_ROOT, DECAY = 1e-6, 0.1
"""Of the simulated AdamW, where there is one."""
PAPER = {"gamma1": 0.7, "gamma2": 0.3, "zeta": 1.7, "retain_weight": 0.9, "inner_learning_rate": 0.05}


def paper_settings(*more: str, **changed: float) -> EraseSettings:
    numbers = PAPER | changed
    return toy_settings(
        "batch_size=4", "inner_optimizer=sgd", "inner_steps=2", "meta_gradient=double-backward",
        "retain_loss=denoising", "inner_horizon=none",
        *(f"{key}={value}" for key, value in numbers.items()), *more,
    )  # fmt: skip


def papers_gradient(
    run: Algorithm1, signs: dict[str, float], *, tuned: Collection[str] = NAMES, optimizer: str = "sgd"
) -> Params:
    """g = gamma_1 grad [L_forget + lambda L_retain] + gamma_2 grad L_meta: Eqs. 1 to 3, unrolled in one graph.

    ``signs`` multiply gamma_1, gamma_2, zeta, lambda and tau. The attacker tunes ``tuned``, and g is over what the run
    trains. A closed-form method's second stage has no L_forget.
    """
    batches = drawn(run)
    weight = {key: value * signs.get(key, 1.0) for key, value in PAPER.items()}
    theta = {name: p.clone().requires_grad_() for name, p in run.theta.items()}
    theta_m = finetuned(theta, batches.inner, tuned, optimizer, weight["inner_learning_rate"])
    l_unlearn = weight["retain_weight"] * l_dm(theta, batches.retain.batch)
    if batches.forget is not None:
        l_unlearn = l_unlearn + l_forget(theta, batches)
    l_meta = -l_dm(theta_m, batches.outer) - weight["zeta"] * (
        l_dm(theta_m, batches.meta_retain.batch) - l_dm(theta, batches.direct.batch)
    )
    g = weight["gamma1"] * l_unlearn + weight["gamma2"] * l_meta
    return dict(zip(run.trained, torch.autograd.grad(g, [theta[name] for name in run.trained]), strict=True))


def finetuned(theta: Params, inner: Sequence[Batch], tuned: Collection[str], optimizer: str, tau: float) -> Params:
    """theta_M of Algorithm 1's lines 13 to 15, in one graph: SGD, or AdamW as its paper has it."""
    at, first, second = dict(theta), dict.fromkeys(tuned, 0.0), dict.fromkeys(tuned, 0.0)
    for m, batch in enumerate(inner, start=1):
        steps = torch.autograd.grad(l_dm(at, batch), [at[name] for name in tuned], create_graph=True)
        for name, g in zip(tuned, steps, strict=True):
            q = g
            if optimizer == "adamw":
                first[name] = 0.9 * first[name] + 0.1 * g
                second[name] = 0.999 * second[name] + 0.001 * g**2
                root = torch.sqrt(second[name] / (1 - 0.999**m) + EPS_ROOT)
                q = first[name] / (1 - 0.9**m) / (root + 1e-8) + DECAY * at[name]
            at[name] = at[name] - tau * q
    return at


@pytest.mark.parametrize("more", [(), ("meta_retain=related",), ("meta_retain=unrelated",), ("common_noise=false",)])
def test_the_outer_gradient_is_the_papers(more: tuple[str, ...]) -> None:
    run = toy_run(paper_settings(*more))
    assert error(run.outer_gradient()[0], papers_gradient(run, {})) < EXACT


@pytest.mark.parametrize("flipped", PAPER)
def test_every_weight_of_the_paper_has_a_sign_and_a_scale(flipped: str) -> None:
    """With one weight's sign turned, or the weight doubled, in the reference alone, the two no longer agree."""
    found = toy_run(paper_settings()).outer_gradient()[0]
    for factor in (-1.0, 2.0):
        assert error(found, papers_gradient(toy_run(paper_settings()), {flipped: factor})) > 1e-3


PARTS = [
    pytest.param(("out",), "f", NAMES, id="attacker-tunes-more"),
    pytest.param(NAMES, "x", ("attn2_hidden",), id="attacker-tunes-less"),
    pytest.param(("out",), "x", ("attn2_hidden",), id="attacker-tunes-other"),
    pytest.param(("out", "time"), "method", ("out", "time"), id="attacker-tunes-the-same"),
]
"""What the method trains, ``inner_subset``, and what it holds of the toy denoiser."""


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("trained", "which", "tuned"), PARTS)
def test_what_the_attacker_tunes_need_not_be_what_the_method_trains(
    trained: tuple[str, ...], which: str, tuned: tuple[str, ...], optimizer: str
) -> None:
    """The attack runs over its own parameters, the adjoint over all, and only g is restricted to what is trained."""
    settings = paper_settings(
        f"inner_optimizer={optimizer}", f"inner_subset={which}", f"inner_weight_decay={DECAY}",
        f"inner_eps_root={EPS_ROOT}",
    )  # fmt: skip
    run = toy_run(settings, trained=trained)
    found = run.outer_gradient()[0]
    assert found.keys() == {*trained}
    assert error(found, papers_gradient(run, {}, tuned=tuned, optimizer=optimizer)) < EXACT
    for wrong in {trained, tuned, NAMES} - {tuned}:
        assert error(found, papers_gradient(run, {}, tuned=wrong, optimizer=optimizer)) > 1e-3


def test_the_second_stage_of_a_closed_form_has_no_forget_loss_and_retains_as_far_as_lambda_says() -> None:
    """gamma_1 lambda grad L_retain + gamma_2 grad L_meta; lines 11, 12 and 17 of the paper's have the latter alone."""
    run = toy_run(paper_settings(), forget=False)
    found, record = run.outer_gradient()
    assert error(found, papers_gradient(run, {})) < EXACT
    assert "loss_forget" not in record
    papers = toy_run(paper_settings(retain_weight=0), forget=False).outer_gradient()[0]
    assert error(papers, papers_gradient(run, {"gamma1": 0})) < EXACT
    for other in (papers, toy_run(paper_settings()).outer_gradient()[0]):
        assert error(found, other) > 1e-2


def test_a_plain_run_has_no_meta_term() -> None:
    run = toy_run(paper_settings(), meta=False)
    assert error(run.outer_gradient()[0], papers_gradient(run, {"gamma2": 0.0})) < EXACT


def test_common_noise_is_common_and_otherwise_it_is_not() -> None:
    one, two = (drawn(toy_run(paper_settings(f"common_noise={word}"))) for word in ("true", "false"))
    assert one.direct is one.meta_retain is one.retain
    assert torch.equal(two.direct.batch.x_0, two.meta_retain.batch.x_0)
    assert not torch.equal(two.direct.batch.eps, two.meta_retain.batch.eps)
    assert not torch.equal(two.direct.batch.t, two.meta_retain.batch.t)
    assert torch.equal(one.outer.eps, two.outer.eps)  # Nothing else is drawn otherwise.


# --- Weights of related and unrelated pictures -----------------------------------------------------------------------


def test_weights_of_a_half_are_the_plain_mean() -> None:
    plain = toy_run(paper_settings()).outer_gradient()[0]
    halves = ("retain_related=0.5", "retain_unrelated=0.5", "zeta_related=0.5", "zeta_unrelated=0.5")
    assert error(toy_run(paper_settings(*halves)).outer_gradient()[0], plain) < EXACT


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("retain_related=1", r"retain_related and retain_unrelated come together"),
        ("zeta_unrelated=1", r"zeta_related and zeta_unrelated come together"),
    ],
)
def test_half_a_pair_is_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        toy_settings(override)


def test_weights_that_could_not_be_heard_are_refused() -> None:
    with pytest.raises(UserError, match=r"meta_retain = 'related'.*meta_retain=both"):
        toy_settings("zeta_related=1", "zeta_unrelated=1", "meta_retain=related")
    with pytest.raises(UserError, match="batch_size of at least 2"):
        toy_settings("retain_related=1", "retain_unrelated=1", "batch_size=1")
    assert toy_settings("retain_related=1", "retain_unrelated=2", "batch_size=2").retain_unrelated == 2
    taken_back = toy_settings("retain_related=none", "retain_unrelated=none", recipe="as-released")
    assert (taken_back.retain_related, taken_back.retain_unrelated) == (None, None)


# --- The released code's objective -----------------------------------------------------------------------------------

GAMMAS = {"gamma11": 0.1, "gamma12": 0.01, "gamma21": 0.01, "gamma22": 1.0, "gamma23": 1.0}
"""The official ESD script's, as its command line parser reads them."""


def released_gradient(run: Algorithm1, gammas: dict[str, float]) -> Params:
    """L_unlearn + g11 L_irt + g12 L_tgt at theta, - g21 L_hrm - g22 L_tgt - g23 L_irt at theta'.

    Written as the released scripts proceed: torch's AdamW and clipping make theta' out of a clone in three steps of ten
    pictures, then every term's gradient is taken at its own parameters and added up over three batches. They see 10
    pictures of either retained kind in a batch, and this draw has 5.
    """
    batches = drawn(run)
    theta = {name: p.clone().requires_grad_() for name, p in run.theta.items()}
    adapted = {name: p.clone().requires_grad_() for name, p in run.theta.items()}
    attacker = torch.optim.AdamW(list(adapted.values()), lr=1e-5, weight_decay=1e-4)
    assert [len(batch.t) for batch in batches.inner] == [10, 10, 10]
    for batch in batches.inner:
        l_dm(adapted, batch).backward()
        torch.nn.utils.clip_grad_norm_(list(adapted.values()), 1.0)
        attacker.step()
        attacker.zero_grad()

    l_forget(theta, batches).backward()
    total = {name: p.grad.clone() for name, p in theta.items()}
    kept = batches.retain
    assert (kept.related, len(kept.batch.t), len(batches.outer.t)) == (15, 30, 30)
    terms = [
        (+gammas["gamma11"], theta, kept.batch, range(15, 30)),
        (+gammas["gamma12"], theta, kept.batch, range(15)),
        (-gammas["gamma21"], adapted, batches.outer, range(30)),
        (-gammas["gamma22"], adapted, kept.batch, range(15)),
        (-gammas["gamma23"], adapted, kept.batch, range(15, 30)),
    ]
    for gamma, at, pictures, rows in terms:
        size = len(rows) // 3
        for first in range(rows.start, rows.stop, size):
            part = l_dm(at, pictures, slice(first, first + size))
            gradient = torch.autograd.grad(part, list(at.values()))
            for name, g in zip(at, gradient, strict=True):
                total[name] += gamma * g
    return total


def test_the_recipe_as_released_is_the_released_code() -> None:
    """To 1e-7: this Adam has an eps_root of 1e-16, and first order keeps AdamW's decay of 1e-9 a step."""
    run = toy_run(toy_settings(recipe="as-released"))
    found, record = run.outer_gradient()
    assert len(record["loss_finetuning"]) == 3
    assert error(found, released_gradient(run, GAMMAS)) < 1e-7


@pytest.mark.parametrize("flipped", GAMMAS)
def test_every_gamma_of_the_released_code_has_a_sign(flipped: str) -> None:
    run = toy_run(toy_settings(recipe="as-released"))
    found = run.outer_gradient()[0]
    for factor in (-1.0, 2.0):
        assert error(found, released_gradient(run, GAMMAS | {flipped: factor * GAMMAS[flipped]})) > 1e-4


def test_the_released_step_is_a_clipped_adamw_step() -> None:
    run = toy_run(toy_settings(recipe="as-released"))
    at = {name: p.clone().requires_grad_() for name, p in run.theta.items()}
    for name, g in released_gradient(run, GAMMAS).items():
        at[name].grad = g
    assert torch.nn.utils.clip_grad_norm_(list(at.values()), 1.0) > 1
    torch.optim.AdamW(list(at.values()), lr=1e-5, weight_decay=1e-4).step()
    before = {name: p.clone() for name, p in run.theta.items()}
    run.take_step()
    moved = {name: p - before[name] for name, p in run.theta.items()}
    assert error(moved, {name: p.detach() - before[name] for name, p in at.items()}) < 1e-4


# --- Accumulation ----------------------------------------------------------------------------------------------------

ACCUMULATED = (
    (),
    ("meta_retain=related",),
    ("meta_retain=unrelated", "common_noise=false"),
    ("retain_related=0.2", "retain_unrelated=0.9", "zeta_related=2", "zeta_unrelated=0.1"),
    ("meta_loss=path", "post_attack_loss=forget", "zeta_margin=0.05", "zeta_related=2", "zeta_unrelated=0.1"),
)


@pytest.mark.parametrize("more", ACCUMULATED)
@pytest.mark.parametrize("meta", [True, False])
def test_micro_batches_add_up_to_the_whole_batch(
    more: tuple[str, ...], meta: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same draws at once and in three parts: equal to rounding, losses in the log included."""
    run = toy_run(paper_settings("accumulation=3", "batch_size=5", *more), meta=meta)
    found, record = run.outer_gradient()
    sizes = [len(part.outer.t) for part in drawn(run).parts(3)]
    assert sizes == [5, 5, 5]
    monkeypatch.setattr(OuterDraw, "parts", lambda self, count: [self])
    assert len(drawn(run).outer.t) == 15
    whole, of_whole = run.outer_gradient()
    assert error(found, whole) < EXACT
    for key in ("loss_forget", "loss_retain", *(["loss_meta_at_theta_m"] if meta else [])):
        assert record[key] == pytest.approx(of_whole[key], rel=1e-12)
    assert error(found, toy_run(paper_settings("batch_size=5", *more), meta=meta).outer_gradient()[0]) > 1e-3


def test_a_gradients_layout_in_memory_is_of_no_consequence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Column by column or row by row: the step is the same bits."""
    settings = toy_settings("batch_size=4")
    expected, run = toy_run(settings, meta=False), toy_run(settings, meta=False)
    expected.take_step()
    gradient, record = run.outer_gradient()
    turned = {name: g.mT.contiguous().mT if g.dim() == 2 else g for name, g in gradient.items()}
    assert any(turned[name].stride() != g.stride() for name, g in gradient.items())
    monkeypatch.setattr(run, "outer_gradient", lambda: (turned, record))
    run.take_step()
    assert all(torch.equal(p, expected.theta[name]) for name, p in run.theta.items())


def test_parts_of_a_draw_keep_shares_and_identity() -> None:
    batches = drawn(toy_run(paper_settings("accumulation=2", "batch_size=5")))
    parts = batches.parts(2)
    assert all(part.direct is part.meta_retain is part.retain for part in parts)
    assert [part.retain.related for part in parts] == [2, 2]
    whole = batches.retain.batch.x_0
    assert torch.equal(torch.cat([part.retain.batch.x_0[:2] for part in parts]), whole[:4])
    assert torch.equal(torch.cat([part.retain.batch.x_0[2:] for part in parts]), whole[4:])


def test_a_gradient_that_lies_otherwise_in_memory_moves_the_same_numbers() -> None:
    g = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    moved = []
    for gradient in (g, g.contiguous(memory_format=torch.channels_last)):
        p = torch.zeros_like(g)
        p.grad = laid_out_like(p, gradient)
        assert p.grad.stride() == p.stride()
        torch.optim.AdamW([p], lr=0.1, fused=True).step()
        moved.append(p)
    assert torch.equal(moved[0], moved[1])


def test_l_retain_and_both_terms_of_eq_3_have_the_weights_of_their_own() -> None:
    """The direct term has zeta's, as the term at theta_M has, and not those of L_retain beside it."""
    ours, of_zeta = {"retain_related": 0.2, "retain_unrelated": 0.9}, {"zeta_related": 2.0, "zeta_unrelated": 0.1}
    run = toy_run(paper_settings(*(f"{key}={value}" for key, value in (ours | of_zeta).items())))
    batches = drawn(run)

    def both(theta: Params, kept: RetainBatch, weights: dict[str, float]) -> Tensor:
        of_related, of_unrelated = weights.values()
        return of_related * l_dm(theta, kept.batch, related(kept)) + of_unrelated * l_dm(
            theta, kept.batch, unrelated(kept)
        )

    theta = {name: p.clone().requires_grad_() for name, p in run.theta.items()}
    theta_m = finetuned(theta, batches.inner, NAMES, "sgd", PAPER["inner_learning_rate"])
    l_unlearn = l_forget(theta, batches) + PAPER["retain_weight"] * both(theta, batches.retain, ours)
    destroyed = both(theta_m, batches.meta_retain, of_zeta) - both(theta, batches.direct, of_zeta)
    l_meta = -l_dm(theta_m, batches.outer) - PAPER["zeta"] * destroyed
    g = torch.autograd.grad(PAPER["gamma1"] * l_unlearn + PAPER["gamma2"] * l_meta, list(theta.values()))
    assert error(run.outer_gradient()[0], dict(zip(theta, g, strict=True))) < EXACT


def test_a_gradient_is_cut_before_the_step() -> None:
    """(3, 4) at a limit of 1 is (0.6, 0.8); the length that is told is the whole one."""
    p = torch.zeros(2)
    length = clipped_step(torch.optim.SGD([p], lr=1.0), {"p": p}, {"p": torch.tensor([3.0, 4.0])}, 1.0)
    assert length.item() == pytest.approx(5.0)
    assert p.tolist() == pytest.approx([-0.6, -0.8], rel=1e-4)
    assert p.grad is None


def test_parts_that_cannot_have_equal_shares_know_how_many_are_related() -> None:
    """3 related and 3 others in two parts: all of the first, and none of the second."""
    kept = drawn(toy_run(paper_settings("batch_size=6"))).retain
    assert [(part.related, len(part.batch.t)) for part in kept.parts(2)] == [(3, 3), (0, 3)]
