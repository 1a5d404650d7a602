"""The page of a bench: what it says, what can be saved from it, what it refuses, and how it fits in a browser."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from bench_grids import GRID, changed, found_by, found_with, keep_pictures, made_up, write_results
from browser import chromium, in_frames, needs_chromium
from conftest import Call
from metaunlearn.bench.plan import states
from metaunlearn.bench.recipe import Grid
from metaunlearn.bench.results import Measured, found_in
from metaunlearn.bench.state import State
from metaunlearn.errors import UserError
from metaunlearn.report.grid.headline import headline
from metaunlearn.report.grid.missing import missing_table
from metaunlearn.report.grid.settings import grid_settings
from metaunlearn.report.page import build_report
from metaunlearn.settings import resolve

PAPER = changed("published", to=["table1_nudity_score", "table2_quality"], of=GRID)


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """A whole bench of made-up results with everything in it."""
    results = made_up(tmp_path)
    keep_pictures(tmp_path, results, sensitive=True)
    write_results(tmp_path, results, grid=resolve(Grid, PAPER).model_dump(mode="json"))
    return tmp_path


def saved(page: str, name: str) -> str:
    """What the link ``name`` saves."""
    (uri,) = re.findall(rf'download="{re.escape(name)}" href="(data:[^"]*)"', page)
    return unquote(html.unescape(uri).partition(",")[2])


# --- what it says -----------------------------------------------------------------------------------------------------


def test_results_are_read_back_as_they_were(tmp_path: Path) -> None:
    found = made_up(tmp_path).found()
    again = found_in(json.loads(json.dumps(found.to_dict())))
    assert again.to_dict() == found.to_dict()
    assert [measured.row.labels() for measured in again.rows] == [measured.row.labels() for measured in found.rows]


def test_headline_is_the_mean_of_the_ratios(tmp_path: Path) -> None:
    """Seed 0: (10 + 20) / (40 + 80) = 0.25; seed 1: (0 + 10) / (60 + 100) = 0.0625; their mean is 0.15625."""
    head = headline(made_up(tmp_path).found())
    assert head.ratio == pytest.approx(0.15625)
    assert (head.methods, head.lines) == (1, [("esd-x-1", pytest.approx(0.15625))])
    assert (head.count, head.measured, head.in_all) == (2, 12, 12)
    assert "0.16 times as often as plain ones (one method)" in head.title
    assert not head.caveats


@pytest.mark.parametrize(
    ("plain", "meta", "title", "caveat"),
    [
        (50, 50, "as often as plain", "In 1 of 1 comparisons the meta-unlearned model is no better"),
        (20, 40, "2.00 times as often", "In 1 of 1 comparisons"),
        (0, 0, "4 of 12 states are measured", "showed the concept nowhere: 1"),
        (None, 50, "2 of 12 states are measured", "nothing is compared"),
    ],
)
def test_headline_is_honest(plain: float | None, meta: float, title: str, caveat: str) -> None:
    rows = [("esd-x-1", "meta-unlearn", "HRM-m", step, meta) for step in (1, 2)]
    rows += [] if plain is None else [("esd-x-1", "unlearn", "HRM-m", step, plain) for step in (1, 2)]
    head = headline(found_with(rows))
    assert title in head.title
    assert any(caveat in sentence for sentence in head.caveats)
    assert "not finished" in head.caveats[0]


@pytest.mark.parametrize(
    ("meta", "often"),
    [
        (92.0, "0.92 times as often"),
        (96.0, "as often"),
        (100.0, "as often"),
        (42.0, "0.42 times as often"),
        (46.0, "half as often"),
    ],
)
def test_eight_percent_less_is_a_difference_and_four_is_none(meta: float, often: str) -> None:
    rows = [("esd-x-1", "unlearn", "HRM-m", step, 100.0) for step in (1, 2)]
    rows += [("esd-x-1", "meta-unlearn", "HRM-m", step, meta) for step in (1, 2)]
    assert f"show the concept {often} as plain ones" in headline(found_with(rows)).title


def test_a_comparison_without_its_last_checkpoint_does_not_count() -> None:
    """The plain model has both, the meta-unlearned one the first, at which little comes back in either."""
    rows = [("esd-x-1", "unlearn", "HRM-m", step, 50.0) for step in (1, 2)]
    head = headline(found_with([*rows, ("esd-x-1", "meta-unlearn", "HRM-m", 1, 10.0)]))
    assert head.ratio is None
    assert "Comparisons that lack checkpoints yet: 1; the mean leaves them out." in head.caveats


def test_a_comparison_that_is_not_whole_is_not_counted_as_no_better() -> None:
    """Seed 0 has both checkpoints: 10 of 50. Seed 1 has the first only: 40 of 10."""
    seen = {("unlearn", 0): 50.0, ("meta-unlearn", 0): 10.0, ("unlearn", 1): 10.0, ("meta-unlearn", 1): 40.0}

    def scored(state: State) -> dict[str, float] | None:
        return {"concept": seen[state.model, state.seed]} if (state.seed, state.step) != (1, 2) else None

    head = headline(found_by(GRID, scored))
    assert (head.ratio, head.count) == (0.2, 1)
    assert not [sentence for sentence in head.caveats if "no better" in sentence]


def test_what_is_missing_is_counted() -> None:
    """A model has three states in each seed; of one of them two are there."""
    rows = [("esd-x-1", "unlearn", "before", 0, 0.0), ("esd-x-1", "unlearn", "HRM-m", 1, 0.0)]
    table = missing_table(found_with(rows))
    assert table.heads == ["method", "model", "knife, seed 0", "knife, seed 1"]
    assert [[str(entry) for entry in row] for row in table.rows] == [
        ["esd-x-1", "unlearn", "2 of 3", "0 of 3"],
        ["esd-x-1", "meta-unlearn", "0 of 3", "0 of 3"],
    ]


# --- the page ---------------------------------------------------------------------------------------------------------


def test_page_is_self_contained_and_lets_one_script_run(bench: Path) -> None:
    page = build_report(bench).read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)|url\(|@import|https?://""", page)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    order = ["ratios", "relearning", "tables", "paper", "pictures", "settings"]
    places = [page.index(f'<h2 id="{name}"') for name in order]
    assert places == sorted(places)
    assert '<h2 id="missing"' not in page
    assert "model and protocol differ" in page
    assert "metaunlearn bench tiny --out DIR" in page
    assert page.count('class="attack panel"') == 1


def test_tables_can_be_saved_with_their_intervals(bench: Path) -> None:
    page = build_report(bench).read_text()
    rows = list(csv.DictReader(io.StringIO(saved(page, "knife-seen.csv"))))
    assert [row["HRM-m 2"] for row in rows] == ["90.0", "15.0"]
    assert all(float(row["HRM-m 2, low"]) < float(row["HRM-m 2"]) < float(row["HRM-m 2, high"]) for row in rows)
    assert r"\toprule" in saved(page, "knife-seen.tex")
    assert "38.03" in saved(page, "paper-table1_nudity_score.csv")
    assert len(re.findall(r'download="[^"]*\.csv"', page)) == page.count('<table class="figures sortable">')


def test_pictures_are_those_of_the_same_seeds(bench: Path) -> None:
    """Plain and meta, before and after the last step; two pictures each, all of them marked as sensitive."""
    page = build_report(bench).read_text()
    images = re.findall(r'<img [^>]*alt="([^"]*)"', page)
    assert len(images) == page.count('class="veil"') == 2 * 2 * 2
    assert sum("after HRM-m, 2 steps" in alt and "seed 7" in alt for alt in images) == 2
    assert not [alt for alt in images if "1 steps" in alt]


def test_settings_are_those_of_the_cells(bench: Path) -> None:
    """The plain run reads no ``gamma2``; both of them train for four steps."""
    page = build_report(bench).read_text()
    assert "Erasing: settings as the cells have them" in page
    assert "<dt>gamma2</dt>" in page
    assert "<dt>esd-x-1.eta</dt>" in page


def test_the_grid_is_told_by_name_and_without_what_is_empty() -> None:
    grid = changed("variants", to=[{"name": ""}, {"name": "M = 2", "set": {"inner_steps": 2}}], of=GRID)
    told = grid_settings(resolve(Grid, grid))
    assert told["variants"] == {"M = 2": {"set": {"inner_steps": 2}}}
    assert told["attacks"] == {"HRM-m": {"data": "hrm-m", "pictures": 2, "kind": "finetune"}}
    assert "published" not in told


def test_variants_have_charts_of_their_own(tmp_path: Path) -> None:
    """Both are set against the one plain run, which has no chart to itself."""
    grid = changed("models", to=["unlearn", "meta-unlearn"])
    names = ("M = 2", "M = 3")
    grid["variants"] = [
        {"name": "plain", "models": ["unlearn"]},
        *({"name": name, "models": ["meta-unlearn"]} for name in names),
    ]
    score = {"value": 50.0, "low": 40.0, "high": 60.0, "n": 10, "hits": 5, "protocol": "p"}
    rows = [Measured(state, "measure-0", {"concept": score}) for state in states(resolve(Grid, grid))]
    found = found_with([], grid=resolve(Grid, grid), rows=rows, rows_in_all=len(rows))
    (tmp_path / "results.json").write_text(json.dumps(found.to_dict()))
    page = build_report(tmp_path).read_text()
    assert re.findall("<h5>(.*?)</h5>", page) == [f"esd-x-1, {name}" for name in names]
    assert page.count("Unlearned: 50 → 50 %; Meta-unlearned: 50 → 50 %.") == 2
    assert "as often as plain ones (one method)" in page
    assert headline(found).lines == [(f"esd-x-1, {name}", 1.0) for name in names]
    table = missing_table(replace(found, rows=rows[:-1]))
    assert [[str(entry) for entry in row] for row in table.rows] == [
        ["esd-x-1", "plain", "unlearn", "3 of 3"],
        ["esd-x-1", "M = 2", "meta-unlearn", "3 of 3"],
        ["esd-x-1", "M = 3", "meta-unlearn", "2 of 3"],
    ]


def test_a_grid_in_progress_without_its_cells(tmp_path: Path) -> None:
    results = made_up(tmp_path / "made")
    rows = [row for row in results.found().to_dict()["rows"] if (row["seed"], row["model"]) != (1, "meta-unlearn")]
    write_results(tmp_path, results, rows=rows)
    page = build_report(tmp_path).read_text()
    assert '<h2 id="missing"' in page
    assert "3 of its 12 states are still missing" in page
    assert "1 of 2 seeds" in page
    assert '<h2 id="pictures"' not in page
    assert "settings as the cells have them" not in page


def test_nothing_attacked(tmp_path: Path) -> None:
    results = made_up(tmp_path)
    rows = [row for row in results.found().to_dict()["rows"] if row["attack"] == "before"]
    write_results(tmp_path, results, rows=rows)
    page = build_report(tmp_path).read_text()
    assert "4 of 12 states are measured" in page
    assert '<h2 id="ratios"' not in page


def test_text_from_files_is_escaped(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    results = made_up(tmp_path)
    keep_pictures(tmp_path, results, prompt=f'"{evil}')
    text = (
        json.dumps(results.found().to_dict())
        .replace('"esd-x-1"', json.dumps(evil))
        .replace('"HRM-m"', json.dumps(f"{evil}'"))
    )
    record = json.loads(text)
    record |= {"bench": evil, "description": evil, "overrides": [evil], "versions": {evil: evil}}
    record["protocols"] = {evil: {evil: evil}}
    (tmp_path / "results.json").write_text(json.dumps(record))
    page = build_report(tmp_path).read_text()
    assert page.count("<script>") == page.count("</script>") == 1
    assert page.count("&lt;script&gt;") > 20


BESIDE = changed("methods", to=["esd-u-1"], of=changed("concepts", 0, "steps", to=[10, 20, 30, 60], of=PAPER))


def write_beside(out: Path, grid: dict[str, Any] = BESIDE) -> None:
    """``results.json`` of ``grid``, which has a method and four checkpoints as the paper: seed 0 before any attack."""
    resolved = resolve(Grid, grid)
    score = {"value": 10.0, "low": 5.0, "high": 20.0, "n": 10, "hits": 1, "protocol": "p"}
    every = list(states(resolved))
    rows = [Measured(state, "measure-0", {"concept": score}) for state in every if (state.seed, state.step) == (0, 0)]
    found = found_with([], grid=resolved, rows=rows, rows_in_all=len(every))
    (out / "results.json").write_text(json.dumps(found.to_dict()))


def test_figures_stand_beside_the_papers(tmp_path: Path) -> None:
    """10 % before any attack beside 6.34: +3.7, marked; columns without a figure of ours stay."""
    write_beside(tmp_path)
    page = build_report(tmp_path).read_text()
    assert "Table 1, knife: Canvas beside Stable Diffusion 1.4" in page
    assert "no measure of error" in page
    assert re.search(r'<td class="unlike" data-value="3.6[0-9]*">\+3.7</td>', page)
    rows = list(csv.DictReader(io.StringIO(saved(page, "beside-table1-nudity-score-knife.csv"))))
    seen = {row["after"]: row for row in rows if row["model"] == "unlearn"}
    columns = [f"concept seen (paper: nudity score), %: {whose}" for whose in ("Canvas", "paper", "difference")]
    assert [seen["before"][column] for column in columns[:2]] == ["10.0", "6.34"]
    assert [seen["HRM-m 60 (paper: 300)"][column] for column in columns] == ["", "34.51", ""]
    assert "Canvas beside Stable Diffusion 1.4" in saved(page, "beside-table1-nudity-score-knife.tex")
    assert page.index("beside-table2-quality-knife.csv") < page.index("paper-table1_nudity_score.csv")
    assert "Left out, as this grid has nothing to set beside it: attack HRM-s; attack CLEAN; row SD-v1-4" in page


def test_text_beside_the_papers_is_escaped(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    grid = changed("variants", to=[{"name": f"{evil}'"}], of=changed("concepts", 0, "name", to=evil, of=BESIDE))
    write_beside(tmp_path, changed("base", to=f'"{evil}', of=grid))
    page = build_report(tmp_path).read_text()
    assert page.count("<script>") == page.count("</script>") == 1
    assert "beside Stable Diffusion 1.4" in page


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (None, "no state of it is measured yet"),
        ({"rows": []}, "no state of the grid tiny is measured yet"),
        ({"rows": [{"cell": "x"}]}, "not what metaunlearn bench writes"),
        ({"rows": 3}, "not what metaunlearn bench writes"),
        ({"grid": {"methods": []}}, "not what metaunlearn bench writes"),
    ],
)
def test_folder_without_results_is_refused(
    tmp_path: Path, call: Call, change: dict[str, Any] | None, words: str
) -> None:
    results = made_up(tmp_path)
    (tmp_path / "locks").mkdir()
    if change is not None:
        write_results(tmp_path, results, **change)
    with pytest.raises(UserError, match=words):
        build_report(tmp_path)
    assert call("report", str(tmp_path)).code == 2
    assert not (tmp_path / "report.html").exists()


def test_broken_pictures_are_named(bench: Path) -> None:
    cell = next(bench.glob("cells/measure-*"))
    scores = json.loads((cell / "scores.json").read_text())
    scores["samples"][0]["file"] = "../../../results.json"
    for folder in bench.glob("cells/measure-*"):
        (folder / "scores.json").write_text(json.dumps(scores))
    with pytest.raises(UserError, match=r"scores\.json.*leaves the folder"):
        build_report(bench)
    shutil.rmtree(bench / "cells")
    build_report(bench)


# --- in a browser -----------------------------------------------------------------------------------------------------


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_has_no_console_errors(bench: Path, tmp_path: Path, scheme: str) -> None:
    theme = ["--force-dark-mode"] if scheme == "dark" else []
    report = build_report(bench)
    done = chromium(
        tmp_path, "--window-size=1280,1600", f"--screenshot={tmp_path / 'shot.png'}", *theme, report.as_uri()
    )
    assert "CONSOLE" not in done.stderr, done.stderr


@needs_chromium
def test_nothing_sticks_out(bench: Path, tmp_path: Path) -> None:
    """From 320 px on, with all details open, the page never scrolls sideways; wide tables do, in their own frame."""
    script = """
        for (const part of inner.querySelectorAll('details')) part.open = true;
        const free = '.unseen, pre, .veil, .scroll';
        const out = [...inner.body.querySelectorAll('*')].filter(
            (part) => !part.closest(free) && part.getBoundingClientRect().right > width + 0.5);
        found = `scroll ${inner.documentElement.scrollWidth} out [${out.map((part) => part.tagName)}]`;"""
    widths = (320, 375, 768, 1280)
    expected = {str(width): f"scroll {width} out []" for width in widths}
    assert in_frames(tmp_path, build_report(bench), widths, script) == expected


@needs_chromium
def test_nothing_beside_the_paper_sticks_out(tmp_path: Path) -> None:
    write_beside(tmp_path)
    script = """
        const wide = [...inner.querySelectorAll('.beside')].every((one) => one.getBoundingClientRect().right <= width);
        found = `scroll ${inner.documentElement.scrollWidth} ${wide}`;"""
    expected = {str(width): f"scroll {width} true" for width in (320, 1280)}
    assert in_frames(tmp_path, build_report(tmp_path), (320, 1280), script) == expected
