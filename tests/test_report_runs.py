"""Pages of folders that hold runs and benches: strips are shown, benches have pages of their own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from bench_grids import made_up, write_results
from browser import in_frames, needs_chromium
from conftest import Call
from metaunlearn.errors import UserError
from metaunlearn.report.charts import loss_chart
from metaunlearn.report.page import build_report
from report_fixtures import draw_picture, invented_summary, write_runs, write_samples


def write_bench(out: Path) -> None:
    """A bench with a grid whose cells hold what runs hold: ``run.json``, a log, scores."""
    results = made_up(out)
    (out / "locks").mkdir()
    (out / "tiny grid").mkdir()
    write_results(out / "tiny grid", results)
    cell = out / "cells" / "erase-0"
    cell.mkdir()
    (cell / "run.json").write_text(json.dumps({"status": "complete"}))
    (cell / "log.jsonl").write_text("".join(json.dumps({"step": step, "cell_loss": step}) + "\n" for step in range(9)))


def write_attack(out: Path, side: int = 64) -> None:
    """What ``attack --strip`` leaves."""
    (out / "strip").mkdir(parents=True)
    for step in (5, 10, 100):
        draw_picture("concept", 0.2, step).resize((side, side)).save(out / "strip" / f"{step:06d}.png")
    Image.new("RGB", (8, 8)).save(out / "strip.png")
    (out / "run.json").write_text(json.dumps({"status": "complete", "request": {"strip": 'a "knife" <b>'}}))


def test_benches_are_linked_and_not_walked_into(tmp_path: Path) -> None:
    write_runs(tmp_path)
    write_bench(tmp_path / "my bench")
    page = build_report(tmp_path).read_text()
    assert re.findall('<article class="run">\n<h3>(.*?) <small>', page) == ["erase"]
    assert "cell_loss" not in page
    assert "my bench/tiny grid <small>no page yet: <code>metaunlearn report DIR/my bench/tiny grid</code>" in page
    assert "1 run, 2 tables of scores, 1 grid of a bench.</p>" in page
    build_report(tmp_path / "my bench" / "tiny grid")
    page = build_report(tmp_path).read_text()
    assert '<a href="my%20bench/tiny%20grid/report.html">my bench/tiny grid</a></th><td>12 of 12</td>' in page


def test_a_folder_of_benches_alone_lists_them(tmp_path: Path, call: Call) -> None:
    for name in ("one", "two"):
        write_bench(tmp_path / name)
    (tmp_path / "empty" / "cells" / "erase-0").mkdir(parents=True)
    (tmp_path / "empty" / "locks").mkdir()
    (tmp_path / "empty" / "cells" / "erase-0" / "run.json").write_text("{}")
    assert call("report", str(tmp_path)).code == 0
    page = (tmp_path / "report.html").read_text()
    assert "2 grids of benches.</p>" in page
    assert 'id="runs"' not in page
    assert page.count("<td>12 of 12</td>") == 2


def test_each_page_of_a_bench_is_named_once(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaunlearn.report.runs.grids_in", lambda folder: [folder / "one", folder / "two"])
    monkeypatch.setattr("metaunlearn.report.page.build_report", lambda folder: folder / "report.html")
    found = json.loads(call("report", tmp_path, "--json").out)
    one, two = (str(tmp_path / name / "report.html") for name in ("one", "two"))
    assert found == {"report": one, "more": [two]}
    assert call("report", tmp_path).out.splitlines() == [f"report: {one}", f"report: {two}"]


def test_a_demo_below_is_linked_and_nothing_of_it_repeated(tmp_path: Path) -> None:
    (tmp_path / "the demo" / "unlearn").mkdir(parents=True)
    write_samples(tmp_path / "the demo")
    (tmp_path / "the demo" / "summary.json").write_text(json.dumps(invented_summary()))
    write_runs(tmp_path / "the demo" / "unlearn")
    (tmp_path / "the demo" / "run.json").write_text(json.dumps({"status": "complete", "request": {"command": "demo"}}))
    (tmp_path / "another's").mkdir()
    (tmp_path / "another's" / "summary.json").write_text('{"a": 1}')
    page = build_report(tmp_path).read_text()
    assert "the demo <small>no page yet: <code>metaunlearn report DIR/the demo</code>" in page
    assert "</th><td>knife</td>" in page
    assert "1 demo.</p>" in page
    assert '<article class="run">' not in page
    assert '<h2 id="scores">' not in page
    build_report(tmp_path / "the demo")
    page = build_report(tmp_path).read_text()
    assert '<a href="the%20demo/report.html">the demo</a></th><td>knife</td>' in page


def test_a_run_that_failed_says_why(tmp_path: Path) -> None:
    record = {"status": "failed", "request": {"command": "erase"}, "error": "a loss is not finite <at> step 3"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    page = build_report(tmp_path).read_text()
    assert '<h3>run <small>failed</small></h3>\n<p class="hint">a loss is not finite &lt;at&gt; step 3</p>' in page


def test_a_search_below_is_linked_and_nothing_of_it_repeated(tmp_path: Path) -> None:
    search = tmp_path / "the search"
    for name in ("cells/erase-0", "locks", "trials"):
        (search / name).mkdir(parents=True)
    (search / "cells" / "erase-0" / "run.json").write_text("{}")
    (search / "tune.json").write_text("{}")
    page = build_report(tmp_path).read_text()
    assert "1 search.</p>" in page
    assert '<th scope="row">the search</th><td>0</td>' in page
    for number in range(2):
        (search / "trials" / f"trial-{number:04d}.json").write_text("{}")
    (search / "frontier.md").write_text("# found")
    page = build_report(tmp_path).read_text()
    assert '<a href="the%20search/frontier.md">the search</a></th><td>2</td>' in page
    assert '<article class="run">' not in page


def test_percentages_have_one_decimal_whatever_they_are(tmp_path: Path) -> None:
    for name, value in (("none", 0.0), ("some", 0.5)):
        (tmp_path / name).mkdir()
        result = {"value": value, "low": 0.0, "high": 3.7, "n": 100, "protocol": {"unit": "percent of images"}}
        (tmp_path / name / "results.json").write_text(json.dumps({"concept": result}))
    page = build_report(tmp_path).read_text()
    assert '<th scope="row">none</th><td>0.0</td><td>0.0–3.7</td>' in page
    assert '<th scope="row">some</th><td>0.5</td><td>0.0–3.7</td>' in page


def test_a_bench_without_a_grid_is_nothing_to_report(tmp_path: Path) -> None:
    for name in ("cells", "locks"):
        (tmp_path / "bench" / name).mkdir(parents=True)
    with pytest.raises(UserError, match="holds no results"):
        build_report(tmp_path)


def test_a_strip_is_shown_step_by_step(tmp_path: Path) -> None:
    """Folded up, as what an attack brings back may be nothing for everybody's eyes."""
    write_attack(tmp_path / "attack")
    page = build_report(tmp_path).read_text()
    assert "<details><summary>Pictures of “a &#34;knife&#34; &lt;b&gt;” during the attack</summary>" in page
    assert re.findall("<figcaption>(.*?)</figcaption>", page) == ["5 steps", "10 steps", "100 steps"]
    assert (
        len(re.findall(r'<img src="data:image/webp;base64,[^"]+" width="64" height="64" alt="“a [^"]+” after', page))
        == 3
    )


def test_strips_of_large_pictures_fit_the_page(tmp_path: Path) -> None:
    for number in range(12):
        write_attack(tmp_path / f"attack-{number}", side=512)
    assert build_report(tmp_path).stat().st_size < 3_000_000


@needs_chromium
def test_nothing_sticks_out(tmp_path: Path) -> None:
    write_attack(tmp_path / "attack", side=512)
    write_bench(tmp_path / "bench")
    script = """
        for (const part of inner.querySelectorAll('details')) part.open = true;
        const out = [...inner.body.querySelectorAll('*')].filter(
            (part) => !part.closest('.unseen, pre') && part.getBoundingClientRect().right > width + 0.5);
        found = `scroll ${inner.documentElement.scrollWidth} out [${out.map((part) => part.tagName)}]`;"""
    expected = {str(width): f"scroll {width} out []" for width in (320, 1280)}
    assert in_frames(tmp_path, build_report(tmp_path), (320, 1280), script) == expected


def test_the_checkpoints_of_an_attack_are_no_runs_of_their_own(tmp_path: Path) -> None:
    run = {"status": "complete", "request": {"command": "attack", "kind": "finetune"}}
    for name, record in {"attacked": run, "attacked/step-000003": run | {"step": 3}, "other": run}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(record))
    page = build_report(tmp_path).read_text()
    assert re.findall('<article class="run">\n<h3>(.*?) <small>', page) == ["attacked", "other"]


@pytest.mark.parametrize(
    ("points", "labels"),
    [
        ([(1, 0.007), (2, 0.0108), (3, 0.009)], ["1", "2", "3", "step", "0.007", "0.008", "0.009", "0.01", "0.011"]),
        ([(1, -0.00004), (2, 0.00016)], ["1", "2", "step", "0", "5e-5", "1e-4", "1.5e-4"]),
        ([(step, 1000 * step) for step in range(1, 20)], ["0", "5", "10", "15", "20", "step"]),
        ([(1, 0.5), (2, 0.5)], ["1", "2", "step"]),
    ],
)
def test_labels_of_a_loss_differ_and_are_short(points: list[tuple[float, float]], labels: list[str]) -> None:
    found = re.findall(r">([^<>]+)</text>", str(loss_chart(points)))
    assert found[: len(labels)] == labels
    values = found[found.index("step") + 1 :]
    assert len({*values}) == len(values)
    assert max(map(len, values)) <= 7


def test_what_tells_tables_apart_is_brief_and_the_concept_comes_first(tmp_path: Path) -> None:
    for name in ("knife", "clown"):
        (tmp_path / name).mkdir()
        protocol = {"choices": [name, *(f"thing {number}" for number in range(60))], "concept": name}
        found = {"concept": {"value": 1.0, "protocol": protocol}}
        (tmp_path / name / "results.json").write_text(json.dumps(found))
    page = build_report(tmp_path).read_text()
    assert (
        '<p class="apart">concept <b>clown</b>, choices <b>clown, thing 0, thing 1, thing 2, thing 3…</b></p>' in page
    )
    assert "thing 59" in page
