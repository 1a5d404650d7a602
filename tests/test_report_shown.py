"""What the pages do in a browser beside sorting: say figures, take curves away, slide, blur, keep pictures large."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench_grids import GRID, MANY, found_by, many
from browser import in_frames, needs_chromium
from metaunlearn.bench.lines import Line, by_line
from metaunlearn.bench.results import found_in
from metaunlearn.metrics.intervals import wilson
from metaunlearn.report.grid.curves import attack_charts
from metaunlearn.report.grid.worst import WORST, worst_curves
from metaunlearn.report.pictures import LONG
from report_fixtures import invented_summary

# --- curves -----------------------------------------------------------------------------------------------------------


def test_the_worst_case_is_the_highest_of_the_malicious_attacks_so_far() -> None:
    """Plain: fast brings 70 in one step, HRM-m 90 in two; meta: fast 20, HRM-m 30."""
    found = found_in(many())
    *others, worst = attack_charts(found, found.grid.concepts[0])
    assert [chart.title for chart in others] == [attack.name for attack in found.grid.attacks]
    assert others[0].note == "malicious: finetune on 2 pictures, 4 steps"
    assert others[-1].note == "benign: finetune on 40 pictures, 4 steps"
    at_two = others[0].table.rows[2]
    interval = wilson(9, 10)
    assert (at_two[1].text, at_two[1].low, at_two[1].high) == ("90.0", f"{interval.low:.1f}", f"{interval.high:.1f}")
    assert worst.title == WORST
    said = [[(step, score.value) for step, score in curve.points] for curve in worst.facets[0].curves]
    assert said == [
        [(0, 0.0), (1, 70.0), (2, 90.0), (3, 90.0), (4, 90.0)],
        [(0, 0.0), (1, 20.0), (2, 30.0), (3, 30.0), (4, 30.0)],
    ]
    assert [curve.by for curve in worst.facets[0].curves] == [["", "fast", "HRM-m", "HRM-m", "HRM-m"]] * 2
    assert [entry.note for entry in worst.table.rows[1]] == ["", "fast", "fast"]


def test_a_checkpoint_that_one_model_lacks_does_not_make_the_other_worse() -> None:
    """Without meta's figures of fast only HRM-m is left to compare: plain 40, 90."""
    record = many()
    record["rows"] = [row for row in record["rows"] if (row["model"], row["attack"]) != ("meta-unlearn", "fast")]
    found = found_in(record)
    plain, _ = attack_charts(found, found.grid.concepts[0])[-1].facets[0].curves
    assert [score.value for _, score in plain.points] == [0.0, 40.0, 90.0, 90.0, 90.0]


def test_of_two_attacks_that_bring_back_as_much_the_earlier_one_is_the_worst() -> None:
    """HRM-m brings 30 % in one step, fast as many in two."""
    seen = {("HRM-m", 1): 30.0, ("fast", 2): 30.0}
    found = found_by(MANY, lambda state: {"concept": seen.get((state.attack, int(state.step)), 0.0)})
    lines = by_line(found.rows)
    curves = worst_curves([Line("esd-x-1", "", "unlearn")], lines, {"HRM-m": (1, 2), "fast": (1, 2)})
    assert [curve.by for curve in curves] == [["", "HRM-m", "HRM-m"]]


def test_what_was_measured_before_any_attack_alone_makes_no_chart() -> None:
    found = found_by(GRID, lambda state: {"concept": 0.0} if state.attack == "before" else None)
    assert len(found.rows) == 4
    assert attack_charts(found, found.grid.concepts[0]) == []


def test_curves_can_be_read_without_a_script(wide_page: Path) -> None:
    """Each chart has its table; with one method each has the size of one by itself."""
    page = wide_page.read_text(encoding="utf-8")
    charts = page.count("data-reading=")
    assert charts == page.count('<details class="values">') == 8
    table = re.findall(r'<details class="values">.*?</details>', page, re.DOTALL)[0]
    assert re.findall(r'<td data-value="([^"]*)">', table) == [
        "0.0",
        "0.0",
        "40.0",
        "10.0",
        "90.0",
        "30.0",
        *["0.0"] * 4,
    ]
    assert page.count('width="344"') == charts


@needs_chromium
@pytest.mark.parametrize("kind", ["bench", "demo"])
def test_a_chart_says_its_figures(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """By the pointer at the right end, by the arrow keys one step back; Escape hides them."""
    report = request.getfixturevalue(f"{kind}_page")
    script = """
        const view = inner.defaultView, chart = inner.querySelector('[data-reading]');
        const tip = inner.querySelector('.tip'), box = chart.getBoundingClientRect(), all = [tip.hidden];
        chart.dispatchEvent(new view.PointerEvent('pointermove', { clientX: box.right, clientY: box.top }));
        all.push(tip.hidden, tip.firstChild.textContent);
        chart.focus();
        chart.dispatchEvent(new view.KeyboardEvent('keydown', { key: 'ArrowLeft' }));
        all.push(inner.activeElement === chart, chart.getAttribute('aria-valuenow'), tip.firstChild.textContent);
        all.push(chart.getAttribute('aria-valuetext').split(' (')[0]);
        const edge = tip.getBoundingClientRect();
        all.push(edge.left >= 0 && edge.right <= width);
        chart.dispatchEvent(new view.KeyboardEvent('keydown', { key: 'Escape' }));
        all.push(tip.hidden);
        found = all.join(', ');"""
    last, before, figure = {"bench": (2, 1, "50.0"), "demo": (100, 75, None)}[kind]
    figure = figure or f"{invented_summary()['models']['unlearn']['malicious']['75']['concept'][0]:.1f}"
    said = f"step {before}: Unlearned {figure} %"
    expected = f"true, false, step {last}, true, {before}, step {before}, {said}, true, true"
    assert in_frames(tmp_path, report, (375, 1280), script) == {"375": expected, "1280": expected}


@needs_chromium
def test_a_box_takes_a_models_curves_away(bench_page: Path, tmp_path: Path) -> None:
    """With its band, points and label; those of the other model stay."""
    script = """
        const seen = (name) => new Set([...inner.querySelectorAll(
            `.drawing [stroke="var(--${name})"], .drawing [fill="var(--${name})"]`)].map(
            (part) => inner.defaultView.getComputedStyle(part).visibility));
        inner.querySelector('.key [value="unlearn"]').click();
        found = `${[...seen('unlearn')]} ${[...seen('meta')]}`;"""
    assert in_frames(tmp_path, bench_page, (1280,), script) == {"1280": "hidden visible"}


# --- pictures ---------------------------------------------------------------------------------------------------------


@needs_chromium
def test_two_states_slide_over_each_other(demo_page: Path, tmp_path: Path) -> None:
    """At first plain and meta after the same attack; the slider moves the cut, a choice changes the picture."""
    script = """
        const view = inner.defaultView, whole = inner.querySelector('.compare');
        const range = whole.querySelector('.cut'), [left] = whole.querySelectorAll('select');
        const over = whole.querySelectorAll('.over'), clip = () => view.getComputedStyle(over[0]).clipPath;
        const states = [...whole.querySelectorAll('select')].map((one) => one.selectedOptions[0].textContent);
        range.focus();
        const all = [over.length, ...states, inner.activeElement === range, clip()];
        range.value = 20;
        range.dispatchEvent(new view.Event('input'));
        all.push(clip(), range.getAttribute('aria-valuetext').slice(0, 14));
        const source = whole.querySelector('.under').src;
        left.selectedIndex = 0;
        left.dispatchEvent(new view.Event('change'));
        all.push(whole.querySelector('.under').src !== source);
        all.push(whole.querySelector('.under').src === inner.querySelector('.grid img').src);
        found = all.join(' | ');"""
    states = "Unlearned, malicious, 100 steps | Meta-unlearned, malicious, 100 steps"
    expected = f"6 | {states} | true | inset(0px 0px 0px 50%) | inset(0px 0px 0px 20%) | 20 % Unlearned | true | true"
    assert in_frames(tmp_path, demo_page, (375, 1280), script) == {"375": expected, "1280": expected}


@needs_chromium
def test_sensitive_pictures_of_a_grid_are_blurred_until_asked_for(bench_page: Path, tmp_path: Path) -> None:
    """In the wall and where two lie over each other; a click shows one, the box above all of them."""
    script = """
        const state = (veil) => [...veil.querySelectorAll('img')].map(
            (image) => inner.defaultView.getComputedStyle(image).filter.slice(0, 4)).join('+');
        const all = [];
        for (const place of ['.grid', '.layers']) {
            const [first, second] = inner.querySelectorAll(`${place} .veil`);
            all.push(state(first));
            first.querySelector('input').click();
            all.push(state(first), state(second));
        }
        inner.getElementById('reveal').click();
        all.push(...[...inner.querySelectorAll('.veil')].map(state).filter((one) => one.includes('blur')));
        found = all.join(' ');"""
    expected = "blur none blur blur+blur none+none blur+blur"
    assert in_frames(tmp_path, bench_page, (375,), script) == {"375": expected}


@needs_chromium
def test_a_place_revealed_in_the_slider_stays_so_in_other_states(bench_page: Path, tmp_path: Path) -> None:
    """Nothing is shown for a click in the wall; a click here holds for its place alone, until the next click on it."""
    script = """
        const state = (veil) => [...veil.querySelectorAll('img')].map(
            (image) => inner.defaultView.getComputedStyle(image).filter.slice(0, 4)).join('+');
        const veils = () => [...inner.querySelectorAll('.layers .veil')];
        const selects = inner.querySelectorAll('.compare select'), all = [];
        const choose = (side, index) => {
            const before = inner.querySelectorAll('.layers img')[side].src;
            selects[side].selectedIndex = index;
            selects[side].dispatchEvent(new inner.defaultView.Event('change'));
            all.push(before !== inner.querySelectorAll('.layers img')[side].src, ...veils().map(state));
        };
        for (const one of inner.querySelectorAll('.grid .veil input')) one.click();
        choose(0, 0);
        veils()[0].querySelector('input').click();
        choose(0, 1);
        choose(1, 2);
        veils()[0].querySelector('input').click();
        choose(0, 0);
        found = all.join(' ');"""
    hidden, one = "true blur+blur blur+blur", "true none+none blur+blur"
    assert in_frames(tmp_path, bench_page, (375,), script) == {"375": f"{hidden} {one} {one} {hidden}"}


@needs_chromium
def test_a_wall_of_many_strips_keeps_its_pictures_large(wide_page: Path, tmp_path: Path) -> None:
    """Plain and meta after the same attack stand in one row; heads lie over nothing."""
    assert LONG < 17
    script = """
        const wall = inner.querySelector('.grid'), box = (part) => part.getBoundingClientRect();
        const least = Math.min(...[...wall.querySelectorAll('img')].map((image) => box(image).width));
        const heads = [...wall.querySelectorAll('h4')];
        const over = heads.filter((head) => head.scrollWidth > head.clientWidth + 1 || heads.some(
            (other) => other !== head && box(other).left < box(head).right - 1 && box(head).left < box(other).right - 1
            && box(other).top < box(head).bottom - 1 && box(head).top < box(other).bottom - 1));
        const rows = new Set(heads.map((head) => Math.round(box(head).top))).size;
        found = `${heads.length} heads in ${rows} rows, ${over.length} over, large ${least >= 60}`;"""
    # The original before, then eight rows of two; on a phone a row for each.
    said = {"375": "17 heads in 17 rows", "1280": "17 heads in 9 rows"}
    expected = {width: f"{heads}, 0 over, large true" for width, heads in said.items()}
    assert in_frames(tmp_path, wide_page, (375, 1280), script) == expected
