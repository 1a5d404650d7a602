"""The paper's own tables, to stand beside what a grid finds on another model."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from metaunlearn.bench.formats import Entry, Table

CAPTIONS = {
    "table1_nudity_score": "Table 1: nudity score (%) of SD 1.4 after finetuning",
    "table2_quality": "Table 2: FID and CLIP score before finetuning",
    "table3_nsfw_esd_f_3": "Table 3: unsafe score (%) and NSFW score, ESD-f-3",
    "table4_gamma_ratio_esd_u_1": "Table 4: nudity score (%) by gamma1:gamma2, ESD-u-1",
    "table5_inner_steps_esd_u_3": "Table 5: inner steps M, ESD-u-3",
    "appendix_f_attack_optimizers_esd_u_3": "Appendix F: nudity score (%) by optimiser (the attacker's?), ESD-u-3",
    "unlearndiffatk_asr": "UnlearnDiffAtk: success rate (%)",
}
"""By file name, what the table is."""

NAMING = ("method", "model", "variant", "finetune_data", "attack_optimizer")
"""Columns that say what a row is about, always the first ones."""
PAPERS_MODEL = "CompVis/stable-diffusion-v1-4"
"""That of all published tables."""
PAPERS_MODEL_TITLE = "Stable Diffusion 1.4"
"""As titles say it."""
PAPERS_CONCEPT = "nudity"
"""What is erased in all of them."""

DIFFERS = (
    "Published figures (Gao et al., ICCV 2025). Their model is Stable Diffusion 1.4, their concept nudity as NudeNet "
    "sees it, their attacks 50 to 300 steps: model and protocol differ from this grid's, so compare the order and the "
    "direction, not the figures."
)

SAME_MODEL = (
    "Published figures (Gao et al., ICCV 2025). The paper does not give all settings, its attacker's pictures, the "
    "seeds or the detector's rule: what was used here is in the protocols and settings, and the recipe marks what is a "
    "choice of this project."
)


def is_papers_model(base: str) -> bool:
    """Whether ``base`` is the paper's model: its id on the hub, or where the hub's cache keeps it.

    Of any other folder nothing is known, whatever it is called.
    """
    return base == PAPERS_MODEL or f"models--{PAPERS_MODEL.replace('/', '--')}" in Path(base).parts


def differs(base: str) -> str:
    """What is to be said beside published figures when a grid has this base model."""
    return SAME_MODEL if is_papers_model(base) else DIFFERS


def published_rows(name: str) -> list[dict[str, str]]:
    """The rows of one published table; ``name`` is a key of ``CAPTIONS``."""
    text = (resources.files("metaunlearn.bench") / "paper" / f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def published_tables(names: Sequence[str]) -> list[Table]:
    """The tables ``names``, as the paper has them."""
    return [
        Table(
            name=f"paper-{name}",
            title=CAPTIONS[name],
            heads=heads,
            named=sum(head in NAMING for head in heads),
            rows=[[_entry(text) for text in row] for row in rows],
        )
        for name in names
        for heads, rows in [_wide(name) if name.startswith("table1") else _as_it_is(name)]
    ]


def _entry(text: str) -> Entry:
    try:
        return Entry(text, float(text))
    except ValueError:
        return Entry(text)


def _as_it_is(name: str) -> tuple[list[str], list[list[str]]]:
    rows = published_rows(name)
    return list(rows[0]), [list(row.values()) for row in rows]


def _wide(name: str) -> tuple[list[str], list[list[str]]]:
    """Table 1: a line for each model, a column for each data set and number of steps."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in published_rows(name):
        data, steps = row["finetune_data"], row["finetune_steps"]
        column = "before" if data == "none" else f"{data} {steps}"
        lines.setdefault((row["method"], row["variant"]), {})[column] = row["nudity_score_percent"]
    columns = list(dict.fromkeys(column for line in lines.values() for column in line))
    cells = [[*key, *(line.get(column, "") for column in columns)] for key, line in lines.items()]
    return ["method", "model", *columns], cells
