"""The report: what it says, what it refuses, and how it looks in a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from browser import chromium, in_frames, needs_chromium
from metaunlearn.errors import UserError
from metaunlearn.report.charts import intervals_chart, spread
from metaunlearn.report.data import Sample, Score, Summary
from metaunlearn.report.page import build_report
from metaunlearn.report.runs import losses, read_log, thinned
from metaunlearn.report.sections import self_destruction
from metaunlearn.report.story import headline, rows
from report_fixtures import invented_summary, scores, write_runs, write_samples


@pytest.fixture
def report(demo_page: Path) -> Path:
    """A whole report with everything in it; no test changes it."""
    return demo_page


# --- what it says -----------------------------------------------------------------------------------------------------


def test_headline_gives_shares_of_the_original() -> None:
    """61.4 / 96 = 0.640 and 17 / 96 = 0.177; the ratio is 17 / 61.4 = 0.277."""
    head = headline(invented_summary())
    assert head.attack_steps == 100
    assert head.unlearn_back == pytest.approx(61.4 / 96)
    assert head.meta_back == pytest.approx(17 / 96)
    assert head.ratio == pytest.approx(17 / 61.4)
    assert head.separated[-1] == 100
    assert "64\N{NO-BREAK SPACE}% of “knife”" in head.title
    assert not head.caveats


def test_mean_ratio_is_of_the_means_and_leaves_no_checkpoint_out() -> None:
    """(6 + 10 + 11) / (0 + 20 + 40) = 0.45: the first one counts, although the plain model shows nothing there."""
    summary = invented_summary()
    for model, values in (("unlearn", (0.0, 20.0, 40.0)), ("meta-unlearn", (6.0, 10.0, 11.0))):
        points = {str(step): scores(value, 90, 90) for step, value in zip((1, 2, 3), values, strict=True)}
        summary["models"][model]["malicious"] = points
    assert headline(summary).mean_ratio == pytest.approx(0.45)


def test_without_an_attack_the_headline_looks_whether_it_was_erased_at_all() -> None:
    summary = invented_summary()
    for model in summary["models"].values():
        for attack in ("malicious", "strong", "benign"):
            model.pop(attack, None)
    assert headline(summary).title.startswith("“knife” was erased. No malicious finetuning was run")
    summary["models"]["meta-unlearn"]["before"]["concept"] = [75.0, 65.0, 83.0]
    head = headline(summary)
    assert head.title.startswith("“knife” was not wholly erased. No malicious")
    assert "before any attack the meta-unlearned model still showed" in head.caveats[0]
    summary["models"] = {"original": summary["models"]["original"]}
    assert headline(summary).title == "“knife” was not erased: only the original model was measured."


def test_clip_score_and_fid_have_intervals_of_their_own() -> None:
    summary = invented_summary()
    state = summary["models"]["original"]["before"]
    state |= {"clip_score": 54.5, "fid": 7.7, "intervals": {"clip_score": [54.1, 54.9], "fid": [7.4, 7.9]}}
    row = rows(summary)[0]
    assert row.clip_score is not None
    assert row.fid is not None
    assert row.clip_score.score == (54.5, 54.1, 54.9)
    assert row.fid.score == (7.7, 7.4, 7.9)


def test_figures_of_other_numbers_of_pictures_are_not_subtracted() -> None:
    summary = invented_summary()
    summary["models"]["original"]["before"]["images"] = {"concept": 100, "related": 70, "unrelated": 200}
    summary["models"]["unlearn"]["before"]["images"] = {"concept": 100, "related": 35, "unrelated": 48}
    row = next(row for row in rows(summary) if row.model == "unlearn" and row.attack is None)
    assert (row.concept.change is None, row.related.change, row.unrelated.change) == (False, None, None)
    assert (row.clip_score.change, row.fid.change, row.fid.pictures) == (None, None, 48)


def test_half_is_interpolated_or_not_reached() -> None:
    """Half of 96 is 48: from (100, 30) to (200, 60) it is crossed at 100 + 100 * 18 / 30 = 160."""
    summary = invented_summary()
    summary["models"]["unlearn"]["strong"] = {"200": scores(60, 80, 80), "100": scores(30, 80, 80)}
    summary["models"]["meta-unlearn"]["strong"] = {"100": scores(5, 80, 80), "200": scores(47.9, 80, 80)}
    head = headline(summary)
    assert head.unlearn_half is not None
    assert head.unlearn_half.steps == pytest.approx(160)
    assert head.meta_half is not None
    assert head.meta_half.steps is None
    assert str(head.meta_half) == "not within 200 steps"


def test_a_model_that_shows_half_from_the_start_has_it_before_any_step() -> None:
    summary = invented_summary()
    summary["models"]["unlearn"]["before"] = scores(60, 90, 90)
    assert str(headline(summary).unlearn_half) == "before any step"


@pytest.mark.parametrize(
    ("meta", "unlearn", "words"),
    [
        (61.4, 61.4, "did not help"),
        (90.0, 61.4, "easier here, not harder"),
        (58.0, 61.4, "does not settle"),
        (3.0, 5.0, "too weak"),
    ],
)
def test_headline_is_honest(meta: float, unlearn: float, words: str) -> None:
    summary = invented_summary()
    for model, value in (("meta-unlearn", meta), ("unlearn", unlearn)):
        summary["models"][model]["malicious"]["100"] = scores(value, 80, 90)
    assert words in headline(summary).text


def test_headline_says_when_the_erasing_failed_or_nothing_was_attacked() -> None:
    failed = invented_summary()
    failed["models"]["meta-unlearn"]["before"] = scores(48, 90, 90)
    assert "incomplete: before any attack the meta-unlearned model still showed 50" in headline(failed).text
    unattacked = invented_summary()
    del unattacked["models"]["unlearn"]["malicious"], unattacked["models"]["meta-unlearn"]["malicious"]
    head = headline(unattacked)
    assert head.unlearn_back is None
    assert "not known" in head.text
    no_original = invented_summary()
    del no_original["models"]["original"]
    assert headline(no_original).meta_back is None


@pytest.mark.parametrize(
    ("unlearn", "meta", "separated", "caveat"),
    [
        ([60, 50, 70], [40, 30, 49], True, ""),
        ([60, 50, 70], [40, 30, 50], False, "does not settle the difference"),
        ([60], [40], False, "No intervals were measured"),
        ([60, 50, 70], [3, 1, 6], True, ""),
    ],
    ids=["apart", "touching", "bare", "one not back"],
)
def test_a_difference_is_settled_by_intervals_that_do_not_touch(
    unlearn: list[float], meta: list[float], separated: bool, caveat: str
) -> None:
    summary = invented_summary()
    for model, score in (("unlearn", unlearn), ("meta-unlearn", meta)):
        summary["models"][model]["malicious"]["100"]["concept"] = score
    head = headline(summary)
    assert (100 in head.separated) == separated
    assert len(head.caveats) == bool(caveat)
    assert caveat in head.text


def test_a_model_that_shows_a_seventh_of_the_concept_has_not_erased_it() -> None:
    summary = invented_summary()
    summary["models"]["meta-unlearn"]["before"]["concept"] = [14.0, 9.0, 20.0]
    assert "The erasing was incomplete" in headline(summary).text


def test_one_model_alone_is_called_by_its_name() -> None:
    for model, name in (("unlearn", "the unlearned model"), ("meta-unlearn", "the meta-unlearned model")):
        summary = invented_summary()
        summary["models"] = {one: summary["models"][one] for one in ("original", model)}
        assert name in headline(summary).title


def test_what_was_measured_after_no_step_is_no_attack() -> None:
    summary = invented_summary()
    for model in ("unlearn", "meta-unlearn"):
        summary["models"][model]["malicious"] = {"0": scores(2, 90, 90)}
    assert headline(summary).attack_steps is None


def test_rows_carry_differences_to_the_original() -> None:
    table = rows(invented_summary())
    assert [(row.model, row.state) for row in table][:3] == [
        ("original", "before"),
        ("unlearn", "before"),
        ("unlearn", "malicious, 100 steps"),
    ]
    assert table[0].concept is not None
    assert table[0].concept.change is None
    assert table[2].concept is not None
    assert table[2].concept.change == pytest.approx(61.4 - 96)
    every = rows(invented_summary(), every_step=True)
    assert len(every) == 1 + 2 * (1 + 4 + 5 + 4)
    assert every[2].fid is None


def test_labels_are_kept_apart() -> None:
    assert spread([50, 51, 90], gap=9, low=2, high=98) == [50, 59, 90]
    placed = spread([97, 98, 96], gap=9, low=2, high=98)
    assert placed == [89, 98, 80]


def test_decimals_are_cut_from_coordinates_and_not_from_labels() -> None:
    drawing = intervals_chart([("lr 0.00005", "unlearn", Score(100 / 3, 30.0, 40.0))])
    assert ">lr 0.00005</text>" in drawing
    assert not re.search(r"<[^>]*\d\.\d{3}", drawing)


@pytest.mark.parametrize(
    ("meta", "unlearn", "benign", "words"),
    [
        (48, 85, 90, "This is the self-destruction"),
        (85, 85, 90, "not seen in this run"),
        (48, 50, 90, "adds little"),
        (48, 85, 55, "not special to the attack"),
    ],
)
def test_self_destruction_is_claimed_only_when_seen(meta: float, unlearn: float, benign: float, words: str) -> None:
    """Related concepts start at 89 % (meta-unlearned) and 91 % (unlearned); a clear fall is 10 points."""
    given = invented_summary()
    given["models"]["meta-unlearn"]["malicious"]["100"]["related"] = [meta, meta, meta]
    given["models"]["unlearn"]["malicious"]["100"]["related"] = [unlearn, unlearn, unlearn]
    given["models"]["meta-unlearn"]["benign"]["100"]["related"] = [benign, benign, benign]
    assert words in self_destruction(Summary.model_validate(given))


@pytest.mark.parametrize(
    ("attack", "meta", "words"),
    [
        ("malicious", 82, "Under malicious finetuning the related concepts fall by 7 points"),
        ("malicious", 95, "the related concepts rise by 6 points"),
        ("strong", 48, "Under strong malicious finetuning the related concepts fall by 41 points"),
    ],
)
def test_how_far_related_concepts_moved_is_said(attack: str, meta: float, words: str) -> None:
    """From 89 % before the attack; less than 10 points are no self-destruction."""
    given = invented_summary()
    curves = given["models"]["meta-unlearn"]
    if attack == "strong":
        del curves["malicious"]
    curves[attack] = {"100": {"concept": 5, "related": meta}}
    said = self_destruction(Summary.model_validate(given))
    assert words in said
    assert ("not seen in this run" in said) == (attack == "malicious")


def test_a_sample_says_its_attack_and_steps() -> None:
    facts = {"model": "unlearn", "role": "concept", "prompt": "a knife", "seed": 0, "file": "a.png"}
    found = [Sample(state=state, **facts) for state in ("before", "malicious-100", "lora-merge-5")]
    assert [(one.attack, one.steps) for one in found] == [("before", 0), ("malicious", 100), ("lora-merge", 5)]


# --- the page ---------------------------------------------------------------------------------------------------------


def test_page_is_one_small_self_contained_file(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    assert report.stat().st_size < 3_000_000
    assert page.count("<script") == 1
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)|url\(|@import|https?://""", page)
    order = ["relearning", "collateral", "pictures", "utility", "half", "reading", "settings"]
    places = [page.index(f'<h2 id="{name}"') for name in order]
    assert places == sorted(places)
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) == 9 * 3 * 6
    assert all('alt="' in image and 'alt=""' not in image for image in images)
    assert page.count('class="veil"') == 9


def test_text_from_files_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    summary = invented_summary(evil)
    summary |= {"related": [evil], "commands": [evil], "settings": {evil: {evil: [evil]}}, "versions": {evil: evil}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    write_samples(tmp_path, seeds=1)
    listing = tmp_path / "samples" / "samples.json"
    listing.write_text(json.dumps([{**entry, "prompt": f'"{evil}'} for entry in json.loads(listing.read_text())]))
    page = build_report(tmp_path).read_text()
    assert page.count("<script") == page.count("</script") == 1
    assert page.count("&lt;script&gt;") > 10


def test_loss_names_are_escaped(tmp_path: Path) -> None:
    lines = [{"step": step, "</svg><script>_loss": step} for step in range(3)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert build_report(tmp_path).read_text().count("<script") == 1


def test_intermediate_and_missing_parts(tmp_path: Path) -> None:
    """A plain run: no meta-unlearned model, no benign attack, bare concept scores."""
    before = {"concept": [2, 0, 6]}
    models = {"original": {"before": {"concept": [96, 90, 99]}}, "unlearn": {"before": before, "strong": {"9": before}}}
    (tmp_path / "summary.json").write_text(json.dumps({"concept": "knife", "seconds": 3.0, "models": models}))
    page = build_report(tmp_path).read_text()
    assert 'id="relearning"' in page
    assert 'id="collateral"' not in page


def test_run_folders_are_shown_and_protocols_kept_apart(tmp_path: Path) -> None:
    write_runs(tmp_path)
    page = build_report(tmp_path).read_text()
    assert page.count("<h3>nudity</h3>") == 2
    assert "loss_unlearn" in page
    assert ">esd-u-1<" in page
    assert "<svg" in page


def test_log_is_read_to_its_torn_end_and_thinned(tmp_path: Path) -> None:
    write_runs(tmp_path)
    curves = losses(read_log(tmp_path / "erase" / "log.jsonl"))
    assert set(curves) == {"loss", "loss_unlearn"}
    assert len(curves["loss"]) == 700
    assert len(thinned(curves["loss"])) == 240
    assert thinned([(0, 1), (1, 3), (2, 5), (3, 7)], 2) == [(0.5, 2), (2.5, 6)]


def test_large_pictures_are_shrunk_into_the_budget(tmp_path: Path) -> None:
    write_samples(tmp_path, seeds=1)
    for path in (tmp_path / "samples").glob("*.png"):
        Image.effect_noise((512, 512), 120).convert("RGB").save(path)
    assert build_report(tmp_path).stat().st_size < 3_000_000


# --- what it refuses --------------------------------------------------------------------------------------------------


def _break(change: Callable[[dict[str, Any]], object]) -> str:
    summary = invented_summary()
    change(summary)
    return json.dumps(summary)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "summary.json is no JSON"),
        ("[]", "whole file"),
        ('{"concept": "knife"}', "models"),
        (_break(lambda s: s["models"]["unlearn"]["before"].update(concept="high")), "models.unlearn.before.concept"),
        (_break(lambda s: s["models"]["unlearn"]["before"].update(concept=[250, 0, 9])), "percentages"),
        (_break(lambda s: s["models"]["unlearn"]["before"].update(concept=[60, 70, 50])), "low <= high"),
        (_break(lambda s: s["models"]["unlearn"]["before"].update(fid=float("nan"))), "finite"),
        (_break(lambda s: s["models"].update(other=s["models"]["unlearn"])), "models.other"),
        (_break(lambda s: s["models"]["unlearn"]["malicious"].update(x={"concept": 1})), "malicious.x"),
    ],
)
def test_broken_summary_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        build_report(tmp_path)
    assert "summary.json" in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"looked for summary\.json.*metaunlearn demo"):
        build_report(tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        build_report(tmp_path / "missing")


@pytest.mark.parametrize(
    ("file", "words"),
    [("../secret.png", "leaves the folder"), ("none.png", "does not exist"), ("bad.png", "as an image")],
)
def test_broken_samples_are_named(tmp_path: Path, file: str, words: str) -> None:
    write_samples(tmp_path, seeds=1)
    (tmp_path / "secret.png").write_bytes(b"")
    (tmp_path / "samples" / "bad.png").write_bytes(b"no picture")
    listing = tmp_path / "samples" / "samples.json"
    entries = json.loads(listing.read_text())
    entries[0]["file"] = file
    listing.write_text(json.dumps(entries))
    with pytest.raises(UserError, match=words):
        build_report(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("run.json", "[1]", "run.json"),
        ("log.jsonl", '{"step": 1}\nnonsense\n', "line 2"),
        ("results.json", '{"fid": {"low": 1}}', "fid.value"),
        ("results.json", '{"fid": 3}', "fid"),
    ],
)
def test_broken_run_files_are_named(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / name).write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        build_report(tmp_path)
    assert name in str(caught.value)


# --- in a browser -----------------------------------------------------------------------------------------------------


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_page_renders(report: Path, tmp_path: Path, width: int, scheme: str) -> None:
    shot = tmp_path / "shot.png"
    theme = ["--force-dark-mode"] if scheme == "dark" else []
    done = chromium(tmp_path, f"--window-size={width},1600", f"--screenshot={shot}", *theme, report.as_uri())
    assert "CONSOLE" not in done.stderr, done.stderr
    with Image.open(shot) as image:
        assert image.width >= width
        colours = image.convert("RGB").getcolors(maxcolors=1 << 24)
    assert colours is not None
    assert len(colours) > 100
    background = max(colours)[1]
    assert isinstance(background, tuple)
    assert (sum(background) < 150) == (scheme == "dark"), f"background {background} is not {scheme}"


@needs_chromium
@pytest.mark.parametrize("kind", ["summary", "runs"])
def test_nothing_sticks_out(report: Path, tmp_path: Path, kind: str) -> None:
    """From 320 px (the narrowest phone in use) on, with all details open, the page never scrolls sideways."""
    if kind == "runs":
        write_runs(tmp_path)
        report = build_report(tmp_path)
    script = """
        for (const part of inner.querySelectorAll('details')) part.open = true;
        const free = '.unseen, pre, .veil, thead';
        const out = [...inner.body.querySelectorAll('*')].filter(
            (part) => !part.closest(free) && part.getBoundingClientRect().right > width + 0.5);
        found = `scroll ${inner.documentElement.scrollWidth} out [${out.map((part) => part.tagName)}]`;"""
    widths = (320, 375, 768, 1280)
    assert in_frames(tmp_path, report, widths, script) == {str(width): f"scroll {width} out []" for width in widths}


@needs_chromium
def test_sensitive_pictures_are_blurred_until_asked_for(report: Path, tmp_path: Path) -> None:
    """Each by its own focusable check box (so by Tab and Space, too), all by the one above the grids."""
    script = """
        const [first, second] = inner.querySelectorAll('.veil');
        const state = (veil) => inner.defaultView.getComputedStyle(veil.querySelector('img')).filter.slice(0, 4);
        const seen = [state(first), state(second)];
        const box = first.querySelector('input');
        box.focus();
        seen.push(inner.activeElement === box, box.tabIndex);
        box.click();
        seen.push(state(first), state(second));
        inner.getElementById('reveal').click();
        seen.push(state(second));
        found = seen.join(' ');"""
    assert in_frames(tmp_path, report, (375,), script) == {"375": "blur blur true 0 none blur none"}
