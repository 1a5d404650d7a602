"""Relearning curves and paired tests by hand and against scipy; tables that refuse to mix protocols."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binomtest

from conftest import Call
from metaunlearn.comparing import compare
from metaunlearn.errors import UserError
from metaunlearn.metrics.intervals import Interval, Score, require_same_protocol, score, wilson
from metaunlearn.metrics.intervals import score as scored
from metaunlearn.metrics.nudenet import Detection
from metaunlearn.metrics.nudity import RULES, nudity_score
from metaunlearn.metrics.paired import mcnemar, paired_bootstrap, sign_test
from metaunlearn.metrics.relearning import Curve, _steps_to, relearning, soonest, worst_case
from metaunlearn.metrics.tables import join, table_of

# --- curves


def test_area_by_hand() -> None:
    """0 → 10 → 40 at 0, 50, 100: trapezoids 250 + 1250 over 100 steps is 15. Uneven: (0·…) 2 x 5 + 8 x 30 over 10."""
    assert Curve((0, 50, 100), (0, 10, 40)).area() == pytest.approx(15)
    assert Curve((0, 2, 10), (0, 10, 50)).area() == pytest.approx((2 * 5 + 8 * 30) / 10)
    assert Curve((7,), (12.0,)).area() == 12


def test_steps_to_a_level_by_hand() -> None:
    """Between 10 at 50 and 40 at 100 a level of 25 is crossed half-way, at 75."""
    curve = Curve((0, 50, 100), (0, 10, 40))
    assert curve.steps_to(25) == pytest.approx(75)
    assert curve.steps_to(40) == 100
    assert curve.steps_to(41) is None
    assert curve.steps_to(0) == 0
    assert Curve((0, 10, 20), (0, 30, 5)).steps_to(20) == pytest.approx(20 / 3), "the first crossing counts"


def test_worst_case_over_attacks() -> None:
    curves = {"lora": Curve((0, 50, 100), (0, 60, 10)), "finetune": Curve((0, 50, 100), (0, 20, 50))}
    assert worst_case(curves) == ("lora", 60), "an attacker keeps the best checkpoint"
    assert soonest(curves, original=80) == ("lora", pytest.approx(100 / 3))
    assert soonest(curves, original=200) is None
    with pytest.raises(UserError, match="at least one attack"):
        worst_case({})


def test_curves_that_are_refused() -> None:
    for steps, scores in (((), ()), ((0, 1), (1.0,)), ((1, 0), (0.0, 1.0)), ((0, 1), (0.0, float("nan")))):
        with pytest.raises(UserError, match="relearning curve"):
            Curve(steps, scores)
    with pytest.raises(UserError, match="at least one picture"):
        relearning([0, 1], torch.zeros(2, 0), 90, torch.Generator())


def test_bootstrap_resamples_the_same_pictures_at_every_checkpoint() -> None:
    """Hits that grow together. The slow reference resamples with the same draws and takes means and quantiles."""
    generator = torch.Generator().manual_seed(0)
    level = torch.rand(60, generator=generator)
    hits = torch.stack([level < share for share in (0.05, 0.2, 0.9)])
    found = relearning([0, 20, 40], hits, 90.0, torch.Generator().manual_seed(1), resamples=200)
    again = torch.Generator().manual_seed(1)
    areas, halves = [], []
    for _ in range(200):
        rows = torch.randint(60, (60,), generator=again)
        s = [100 * float(row[rows].double().mean()) for row in hits]
        areas.append((s[0] + 2 * s[1] + s[2]) / 4)
        halves.append(20 + 20 * (45 - s[1]) / (s[2] - s[1]) if s[1] < 45 <= s[2] else None)
    low, high = torch.tensor(areas).double().quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    assert (found.area.low, found.area.high) == pytest.approx((low, high), rel=1e-6)
    assert found.steps_to_half is not None
    assert all(half is not None for half in halves)
    ordered = sorted(half for half in halves if half is not None)
    assert (found.half_low, found.half_high) == pytest.approx((ordered[5], ordered[194]))
    assert found.half_low < found.steps_to_half < found.half_high
    assert (found.area.n, found.limit) == (60, 40)


def test_not_reached_is_none_not_a_number() -> None:
    hits = torch.zeros(3, 50, dtype=torch.bool)
    hits[2, :22] = True
    found = relearning([0, 10, 20], hits, 90.0, torch.Generator().manual_seed(0), resamples=300)
    assert found.steps_to_half is None
    assert found.half_high is None
    assert found.half_low is not None, "some resamples get there"
    never = relearning([0, 10, 20], torch.zeros(3, 50), 90.0, torch.Generator().manual_seed(0), resamples=50)
    assert (never.half_low, never.steps_to_half, never.half_high) == (None, None, None)


def test_pictures_that_are_all_alike_say_how_many_they_are() -> None:
    """None of 50 at any checkpoint: Wilson's interval of 0 of 50, not one of no width. Of all 50, its mirror."""
    expected = wilson(0, 50).high
    none = relearning([0, 10, 20], torch.zeros(3, 50), 90.0, torch.Generator().manual_seed(0), resamples=50).area
    assert (none.value, none.low, none.high) == (0.0, 0.0, pytest.approx(expected))
    every = relearning([0, 10, 20], torch.ones(3, 50), 90.0, torch.Generator().manual_seed(0), resamples=50).area
    assert (every.value, every.low, every.high) == (100.0, pytest.approx(100 - expected), 100.0)


def test_of_nothing_there_is_no_half() -> None:
    hits = torch.tensor([[0, 0], [0, 1], [1, 1]])
    found = relearning([0, 10, 20], hits, 0.0, torch.Generator().manual_seed(0), resamples=50)
    assert (found.half_low, found.steps_to_half, found.half_high) == (None, None, None)
    assert soonest({"lora": Curve((0, 10), (0.0, 50.0))}, original=0.0) is None


# --- paired tests


@pytest.mark.parametrize(("b", "c"), [(0, 0), (5, 0), (0, 6), (7, 3), (10, 10), (1, 0), (40, 20)])
def test_exact_tests_agree_with_scipy_s_binomial(b: int, c: int) -> None:
    """b pictures hit in one model only, c in the other only, and 9 in both, 4 in neither."""
    one = [True] * b + [False] * c + [True] * 9 + [False] * 4
    other = [False] * b + [True] * c + [True] * 9 + [False] * 4
    expected = 1.0 if b + c == 0 else float(binomtest(b, b + c).pvalue)
    assert mcnemar(one, other) == pytest.approx(expected, rel=1e-12)
    assert mcnemar(other, one) == mcnemar(one, other)
    assert sign_test([2.5 * v for v in one], [2.5 * v for v in other]) == pytest.approx(expected, rel=1e-12)


def test_paired_bootstrap_is_narrower_than_an_unpaired_one() -> None:
    """Numbers that share most of their spread: the difference has a standard error of 0.1 / √200 = 0.007."""
    shared = torch.randn(200, generator=torch.Generator().manual_seed(0)).double()
    one = shared + 0.1 * torch.randn(200, generator=torch.Generator().manual_seed(1)).double() + 0.5
    interval = paired_bootstrap(one.tolist(), shared.tolist(), torch.Generator().manual_seed(2))
    assert interval.value == pytest.approx(0.5, abs=0.03)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * float((one - shared).std()) / 200**0.5, rel=0.15)
    flipped = paired_bootstrap(shared.tolist(), one.tolist(), torch.Generator().manual_seed(2))
    assert flipped.value == pytest.approx(-interval.value)


def test_pairs_that_are_refused() -> None:
    for attempt in (lambda: mcnemar([], []), lambda: sign_test([1.0], [1.0, 2.0])):
        with pytest.raises(UserError, match="paired test needs"):
            attempt()
    with pytest.raises(UserError, match="at least 2 pairs"):
        paired_bootstrap([1.0], [2.0], torch.Generator())


# --- tables


def concept(saw: int, n: int = 10, **facts: Any) -> Score:
    protocol = {"metric": "concept", "judge": "a", "judge_weights": "w", "unit": "percent of images", "seeds": "0-9"}
    return scored(wilson(saw, n), protocol={**protocol, "concept": "knife", **facts})


def test_a_table_joins_one_protocol_and_names_any_difference() -> None:
    table = join({"plain": {"concept": concept(5)}, "meta": {"concept": concept(1, seeds="10-19", judge="b")}})
    assert table.metrics == ("concept",)
    assert "| plain | 50 [" in table.markdown()
    for change in ({"steps": 50}, {"judge_weights": "v"}, {"concept": "fork"}):
        with pytest.raises(UserError, match=rf"concept of plain and of meta: .*{next(iter(change))}: "):
            join({"plain": {"concept": concept(5)}, "meta": {"concept": concept(1, **change)}})
    with pytest.raises(UserError, match="No table from no data"):
        join({"plain": {}})
    two = join({"plain": {"concept": concept(5)}, "other": {"fid": concept(5, metric="fid")}})
    assert two.metrics == ("concept", "fid")
    assert "|  |" in two.markdown()


def written(folder: Path, saw: int, **facts: Any) -> Path:
    """An evaluation's folder of ten pictures, of which the first ``saw`` show the concept."""
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"concept": concept(saw, **facts).to_dict()}))
    rows = [
        {"prompt": "a knife", "seed": seed, "guidance_scale": 7.5, "concept": {"saw": "knife" if seed < saw else "key"}}
        for seed in range(10)
    ]
    (folder / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_table_command(call: Call, tmp_path: Path) -> None:
    one, two, three = (
        written(tmp_path / "a/scores", 5),
        written(tmp_path / "b/scores", 1),
        written(tmp_path / "c", 1, steps=2),
    )
    outcome = call("table", one, two, "--out", tmp_path / "t.md")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "t.md").read_text().rstrip() == outcome.out.rstrip()
    assert "| a/scores | 50 [" in outcome.out
    assert json.loads(call("table", one, two, "--json").out)["table"]["b/scores"]["concept"]["value"] == 10
    for arguments, told in (
        ((one, three), "steps: None and 2"),
        ((one, tmp_path), "holds no results.json"),
        ((one, one), "twice"),
        ((one, two, "--out", tmp_path / "t.md"), "exists already"),
    ):
        outcome = call("table", *arguments)
        assert outcome.code == 2
        assert told in outcome.err
    (three / "results.json").write_text('{"concept": {"value": 3}}')
    with pytest.raises(UserError, match="holds no scores"):
        table_of([three])


def test_the_compare_command(call: Call, tmp_path: Path) -> None:
    """Seven hits against one, nested: b = 6, c = 0, p = 2 / 64."""
    one, two = written(tmp_path / "a", 7), written(tmp_path / "b", 1)
    outcome = call("compare", one, two, "--metric", "concept", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert (found["difference"], found["n"], found["test"]) == (pytest.approx(60), 10, "McNemar, exact")
    assert found["p"] == pytest.approx(2 / 64)
    assert found["low"] <= 60 <= found["high"]
    assert "p = 0.0312" in call("compare", one, two, "--metric", "concept").out


def test_what_compare_refuses(tmp_path: Path) -> None:
    one = written(tmp_path / "a", 7)
    with pytest.raises(UserError, match="has no score 'fid'"):
        compare(one, one, "fid")
    with pytest.raises(UserError, match="steps"):
        compare(one, written(tmp_path / "b", 1, steps=3), "concept")
    other = written(tmp_path / "c", 1)
    (other / "raw.jsonl").write_text((other / "raw.jsonl").read_text().replace('"seed": 3', '"seed": 33'))
    with pytest.raises(UserError, match="--seed"):
        compare(one, other, "concept")
    (other / "raw.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="no pairs"):
        compare(one, other, "concept")
    for folder in (one, other):  # As of pictures that somebody else has drawn, without a caption.
        row = {"prompt": "", "seed": None, "guidance_scale": None, "concept": {"saw": "knife"}}
        (folder / "raw.jsonl").write_text(f"{json.dumps(row)}\n" * 2)
    with pytest.raises(UserError, match=r"nothing says which pictures .* belong together"):
        compare(one, other, "concept")


def captioned(folder: Path, cosines: Sequence[float], *keys: str) -> Path:
    """An evaluation of three pictures; the default CLIP rule found the same in all of them."""
    folder.mkdir()
    protocol = {"metric": "clip-score", "judge": "a", "judge_weights": "w"}
    scores = {key: scored(Interval(1.0, 0.0, 2.0, 3), protocol={**protocol, "rule": key}).to_dict() for key in keys}
    (folder / "results.json").write_text(json.dumps(scores))
    rows = [
        {"prompt": "a", "seed": seed, "guidance_scale": 7.5}
        | {key: {"score": x if key == "clip-score:sdd" else 5.0} for key in keys}
        for seed, x in enumerate(cosines)
    ]
    (folder / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("keys", [("clip-score:sdd",), ("clip-score", "clip-score:sdd")], ids=["alone", "beside"])
def test_a_named_clip_rule_is_compared_on_its_own_rows(tmp_path: Path, keys: tuple[str, ...]) -> None:
    """0.3, 0.2, 0.4 and 0.2, 0.2, 0.1 differ by 0.1, 0, 0.3."""
    one, other = (captioned(tmp_path / name, x, *keys) for name, x in (("a", (0.3, 0.2, 0.4)), ("b", (0.2, 0.2, 0.1))))
    found = compare(one, other, "clip-score:sdd")
    assert found["difference"] == pytest.approx(0.4 / 3)
    assert (found["test"], found["p"]) == ("sign test, exact", 0.5)


def test_a_nudity_rule_is_compared_on_the_detections_that_all_share(tmp_path: Path) -> None:
    """Scores of 0.7 and 0.55 in the first, 0.55 and none in the second: by RECE's 0.6 one and none count."""
    rule = RULES["rece-9@0.6"]
    for name, seen in (("a", (0.7, 0.55)), ("b", (0.55, None))):
        detections = [[] if x is None else [Detection("FEET_EXPOSED", x, (0, 0, 1, 1))] for x in seen]
        (tmp_path / name).mkdir()
        score = nudity_score(detections, rule, detector={"judge": "n", "judge_weights": "w"})
        (tmp_path / name / "results.json").write_text(json.dumps({f"nudity:{rule.name}": score.to_dict()}))
        rows = [{"prompt": "a", "seed": i, "guidance_scale": 7.5, "nudity": row} for i, row in enumerate(score.raw)]
        (tmp_path / name / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = compare(tmp_path / "a", tmp_path / "b", f"nudity:{rule.name}")
    assert (found["difference"], found["test"], found["p"]) == (50, "McNemar, exact", 1)


def test_a_level_that_is_just_reached_is_reached() -> None:
    """At the start, too, also where the curve falls or is flat from there."""
    assert Curve((5, 10), (20, 10)).steps_to(20) == 5
    assert Curve((5, 10), (20, 20)).steps_to(20) == 5
    assert Curve((5, 10), (10, 20)).steps_to(20) == 10


def test_resampled_curves_reach_a_level_where_a_curve_does() -> None:
    steps, heights = (0, 5, 20), (0.0, 25.0, 50.0, 75.0)
    columns = list(product(heights, repeat=3))
    for level in (25.0, 30.0, 50.0):
        found = _steps_to(steps, torch.tensor(columns, dtype=torch.float64).T, level).tolist()
        expected = [Curve(steps, column).steps_to(level) for column in columns]
        assert found == pytest.approx([float("inf") if step is None else step for step in expected])


def test_a_judge_without_weights_is_known_by_its_name() -> None:
    def by(**judge: str) -> None:
        require_same_protocol([score(wilson(1, 2), protocol=judge | {"judge": name}) for name in ("one", "two")])

    by(judge_weights="the same")
    with pytest.raises(UserError, match="judge: 'one' and 'two'"):
        by(metric="concept")


def test_a_rule_that_counts_detections_is_compared_in_detections(tmp_path: Path) -> None:
    """Six in four pictures against two: four more, as both scores are sums over the pictures."""
    rule = RULES["mace-9"]
    for name, counts in (("one", (3, 2, 1, 0)), ("other", (1, 0, 1, 0))):
        seen = [[Detection(rule.classes[0], 0.9, (0, 0, 1, 1))] * count for count in counts]
        score = nudity_score(seen, rule, detector={"judge": "n", "judge_weights": "w"})
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps({f"nudity:{rule.name}": score.to_dict()}))
        rows = [{"prompt": "a", "seed": i, "guidance_scale": 7.5, "nudity": row} for i, row in enumerate(score.raw)]
        (tmp_path / name / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = compare(tmp_path / "one", tmp_path / "other", f"nudity:{rule.name}")
    assert (found["one"], found["other"], found["difference"]) == (6, 2, 4)
    assert (found["low"], found["high"]) == (0, 8)
    assert (found["test"], found["p"], found["ties"]) == ("sign test, exact", 0.5, 2)


def _folder(folder: Path, name: str, score: Score, rows: Sequence[Any], guidance: float = 7.5) -> Path:
    """An evaluation's folder; ``rows`` are what raw.jsonl says of each picture under ``name``, less its variant."""
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({name: score.to_dict()}))
    key = name.partition(":")[0]
    lines = [{"prompt": "a", "seed": i, "guidance_scale": guidance, key: row} for i, row in enumerate(rows)]
    (folder / "raw.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("accuracy", [{"saw": "a", "label": label} for label in "aab"]),
        ("ua", [{"saw": "a", "label": label} for label in "bba"]),
        ("ira", [{"saw": "a", "label": label} for label in "aab"]),
        ("cra", [{"saw": "a", "label": label} for label in "aab"]),
        ("unsafe", [{"flagged": flagged, "score": 0.5} for flagged in (True, True, False)]),
    ],
)
def test_what_counts_of_a_picture_is_the_metrics_own(tmp_path: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Two of three count, against none: the last picture, thrice."""
    protocol = {"metric": name, "judge": "a", "judge_weights": "w", "unit": "percent of images"}
    folders = [
        _folder(tmp_path / which, name, scored(wilson(hits, 3), protocol=protocol), those)
        for which, hits, those in (("one", 2, rows), ("other", 0, [rows[-1]] * 3))
    ]
    found = compare(*folders, name)
    assert found["difference"] == pytest.approx(found["one"] - found["other"]) == pytest.approx(200 / 3)
    assert 0 <= found["low"] < found["difference"] < found["high"] <= 100
    assert (found["ties"], found["p"], found["test"]) == (1, 0.5, "McNemar, exact")


@pytest.mark.parametrize(
    ("metric", "hit"),
    [
        ("asr", {"success": True, "success_before": False}),
        ("asr_without_attack", {"success": False, "success_before": True}),
    ],
)
def test_what_counts_of_a_prompt_is_the_scores_own(tmp_path: Path, metric: str, hit: dict[str, bool]) -> None:
    """Four of five prompts against one, nested: three pairs differ, p = 2 / 8. Elsewhere the other score counts."""
    protocol = {"metric": metric, "judge": "a", "judge_weights": "w", "unit": "percent of prompts"}
    for name, hits in (("a", 4), ("b", 1)):
        folder = _folder(tmp_path / name, metric, scored(wilson(hits, 5), protocol=protocol), [])
        seen = [hit if seed < hits else {key: not found for key, found in hit.items()} for seed in range(5)]
        lines = [{"prompt": "a", "seed": seed, "guidance_scale": 7.5, **facts} for seed, facts in enumerate(seen)]
        (folder / "attacks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = compare(tmp_path / "a", tmp_path / "b", metric)
    assert (found["difference"], found["ties"], found["n"]) == (pytest.approx(60), 2, 5)
    assert (found["test"], found["p"]) == ("McNemar, exact", 0.25)


def test_a_picture_with_two_detections_is_one_picture(tmp_path: Path) -> None:
    rule = RULES["rece-9@0.6"]
    two = [Detection("FEET_EXPOSED", 0.9, (0, 0, 1, 1))] * 2
    folders = []
    for name, seen in (("a", [two, []]), ("b", [[], []])):
        score = nudity_score(seen, rule, detector={"judge": "n", "judge_weights": "w"})
        folders.append(_folder(tmp_path / name, f"nudity:{rule.name}", score, score.raw))
    assert compare(*folders, f"nudity:{rule.name}")["difference"] == 50


def test_the_interval_of_a_difference_is_that_of_the_seed(tmp_path: Path) -> None:
    protocol = {"metric": "clip-score", "judge": "a", "judge_weights": "w", "unit": "cosine"}
    score = scored(Interval(1.0, 0.0, 2.0, 12), protocol=protocol)
    one = _folder(tmp_path / "a", "clip-score", score, [{"score": x**2 / 90} for x in range(12)])
    other = _folder(tmp_path / "b", "clip-score", score, [{"score": 0.3}] * 12)
    first, again, another = (compare(one, other, "clip-score", seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert (first["low"], first["high"]) != (another["low"], another["high"])
    assert first["difference"] == another["difference"]


def test_pictures_of_another_guidance_make_no_pairs(tmp_path: Path) -> None:
    protocol = {"metric": "unsafe", "judge": "a", "judge_weights": "w", "unit": "percent of images"}
    score = scored(wilson(1, 2), protocol=protocol)
    rows = [{"flagged": True}, {"flagged": False}]
    one, other = (_folder(tmp_path / str(g), "unsafe", score, rows, guidance=g) for g in (7.5, 3.0))
    with pytest.raises(UserError, match="guidance"):
        compare(one, other, "unsafe")
