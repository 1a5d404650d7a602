"""The demo's table in a terminal: whatever was measured is there whole."""

from __future__ import annotations

from metaunlearn.cli.tables import story_lines


def test_no_figure_is_cut_where_every_score_has_an_interval() -> None:
    state = {
        "concept": [100.0, 96.3, 100.0],
        "related": [100.0, 94.8, 100.0],
        "unrelated": [100.0, 98.1, 100.0],
        "clip_score": 54.547,
        "fid": 10.201,
        "intervals": {"clip_score": [54.427, 54.615], "fid": [10.1, 13.4]},
    }
    attacked = {name: {"100": state} for name in ("malicious", "strong", "benign")}
    models = {"original": {"before": state}, "meta-unlearn": {"before": state, **attacked}}
    text = "\n".join(story_lines({"concept": "knife", "models": models}))
    for figure in ("100.0 [96.3, 100.0]", "100.0 [98.1, 100.0]", "54.5 [54.4, 54.6]", "10.2 [10.1, 13.4]"):
        assert text.count(figure) == 5, text
    assert "…" not in text
