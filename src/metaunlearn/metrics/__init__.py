"""What can be measured on images: each metric a function that returns a :class:`Score` with interval and protocol."""

from __future__ import annotations

from metaunlearn.metrics.clip_score import clip_score
from metaunlearn.metrics.concept import concept_score, label_accuracy
from metaunlearn.metrics.fid import fid_score, frechet_distance
from metaunlearn.metrics.intervals import Interval, Score, bootstrap_mean, require_same_protocol, wilson
from metaunlearn.metrics.judge import ClassifierJudge, ClipJudge, Judge, load_judge

__all__ = [
    "ClassifierJudge",
    "ClipJudge",
    "Interval",
    "Judge",
    "Score",
    "bootstrap_mean",
    "clip_score",
    "concept_score",
    "fid_score",
    "frechet_distance",
    "label_accuracy",
    "load_judge",
    "require_same_protocol",
    "wilson",
]
