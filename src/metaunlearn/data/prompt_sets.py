"""The prompt sets that figures are published on, read from the user's own copy; none of their text is shipped.

The nudity subset of I2P is UnlearnDiffAtk's: prompts whose image by Stable Diffusion 1.4, with the row's seed and
guidance, got a NudeNet score above 0.75. No column of I2P holds that score, so the rows are named by their numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaunlearn.data.prompts import Prompt, number_in, prompt_of, read_rows
from metaunlearn.errors import UserError, did_you_mean
from metaunlearn.files import check_new_file, write_atomic

I2P_ROWS = 4703
I2P_NUDITY = (
    21, 296, 541, 617, 628, 673, 689, 716, 731, 1011, 1020, 1053, 1059, 1075, 1079, 1084, 1092, 1103, 1154, 1176,
    1181, 1183, 1184, 1192, 1202, 1209, 1218, 1220, 1221, 1224, 1225, 1229, 1234, 1242, 1244, 1246, 1252, 1261,
    1268, 1269, 1273, 1274, 1275, 1276, 1277, 1289, 1291, 1304, 1305, 1306, 1313, 1317, 1318, 1327, 1333, 1334,
    1348, 1401, 1404, 1423, 1446, 1457, 1474, 1489, 1504, 1940, 2022, 2033, 2034, 2038, 2091, 2094, 2110, 2131,
    2134, 2155, 2169, 2564, 2935, 2988, 3033, 3111, 3116, 3124, 3126, 3139, 3151, 3155, 3157, 3159, 3162, 3163,
    3171, 3180, 3186, 3187, 3195, 3197, 3198, 3199, 3201, 3202, 3207, 3213, 3214, 3217, 3222, 3225, 3230, 3231,
    3244, 3252, 3257, 3259, 3262, 3265, 3267, 3268, 3272, 3282, 3283, 3285, 3288, 3289, 3292, 3295, 3296, 3302,
    3306, 3308, 3315, 3321, 3324, 3455, 3751, 3835, 3865, 3897, 3923, 4012, 4411, 4519,
)  # fmt: skip
"""The 142 rows, counted from 0; the published table calls them case numbers."""
I2P_NUDITY_SEEDS = "7bad20750dc88c11c0c195dc0c2806a0a1038900a81b370a0bcd410280e06d83"
"""SHA-256 of their seeds, by which a copy without case numbers is known to have the published order."""
COCO_ROWS = 9969
"""Prompts of the "10k" subset."""
COCO_PROMPTS = "8b37a1c694abc94a8069ba9d508f5bfe28d4f72be2cb9a151dd39583883724c0"
"""SHA-256 of them, a line each, in the order of UnlearnDiffAtk's copy."""
UNLEARNDIFFATK = (
    "https://raw.githubusercontent.com/OPTML-Group/Diffusion-MU-Attack/5a3e5d37fb8787113e5d479204ab593a60e303e0/prompts"
)


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """A published set and where a copy of it comes from."""

    description: str
    select: Callable[[Sequence[Mapping[str, Any]], Path], list[Mapping[str, Any]]]
    """The rows of the set among those of a file."""
    fetch: str
    """Commands that fetch a copy."""
    cached: tuple[str, str, str] | None = None
    """Repository, revision and file of a data set on the hub, looked for in the cache."""


def take(name: str, source: Path | None, out: Path) -> dict[str, Any]:
    """Write the prompts of the set ``name`` with their own seeds and guidance to ``out``, for ``--prompts``.

    ``source`` is a copy as .csv, .json or .jsonl; without it the hub's cache is looked through. Returns the summary.
    """
    wanted = set_named(name)
    check_new_file(out, ".jsonl")
    file = source if source is not None else _cached(name, wanted)
    rows = wanted.select(read_rows(file), file)
    prompts = [prompt_of(row, f"{file}, row {number}") for number, row in enumerate(rows, start=1)]
    write_atomic(out, "".join(json.dumps(_record(prompt), ensure_ascii=False) + "\n" for prompt in prompts))
    return {"name": name, "prompts": len(prompts), "out": str(out), "source": str(file)}


def set_named(name: str) -> PromptSet:
    """The set of that name; UserError lists them."""
    if name not in PROMPT_SETS:
        raise UserError(
            f"There is no prompt set {name!r} (name=, NAME).{did_you_mean(name, PROMPT_SETS)} "
            f"There are: {', '.join(PROMPT_SETS)}."
        )
    return PROMPT_SETS[name]


def i2p_nudity(rows: Sequence[Mapping[str, Any]], file: Path) -> list[Mapping[str, Any]]:
    """The 142 rows, found by their case number, or by their place in a complete copy that has the published order."""
    if all(str(row.get("case_number", "")).strip() for row in rows):
        by_case = {_case_number(row, f"{file}, row {place}"): row for place, row in enumerate(rows, start=1)}
        missing = [case for case in I2P_NUDITY if case not in by_case]
        if missing:
            raise UserError(
                f"{file} (source=, --from) lacks {len(missing)} of the {len(I2P_NUDITY)} prompts, the first with the "
                f"case number {missing[0]}. Expected all of I2P, {I2P_ROWS} rows, or the subset itself."
            )
        return [by_case[case] for case in I2P_NUDITY]
    if len(rows) != I2P_ROWS:
        raise UserError(
            f"{file} (source=, --from) has {len(rows)} rows and no column case_number; expected I2P's {I2P_ROWS} rows."
        )
    chosen = [rows[case] for case in I2P_NUDITY]
    seeds = " ".join(str(prompt_of(row, str(file)).seed) for row in chosen)
    if hashlib.sha256(seeds.encode()).hexdigest() != I2P_NUDITY_SEEDS:
        raise UserError(
            f"{file} (source=, --from) has no column case_number, and its rows are not in the published order (their "
            f"seeds differ). Use the copy of UnlearnDiffAtk: {PROMPT_SETS['i2p-nudity'].fetch}"
        )
    return chosen


def _case_number(row: Mapping[str, Any], where: str) -> int:
    number = number_in(row["case_number"])
    if number is None or number != int(number):
        raise UserError(
            f"{where} (source=, --from): a case_number is a whole number, got {row['case_number']!r}. "
            f"Fetch a copy with: {PROMPT_SETS['i2p-nudity'].fetch}"
        )
    return int(number)


def coco_10k(rows: Sequence[Mapping[str, Any]], file: Path) -> list[Mapping[str, Any]]:
    """All rows of a copy of the subset, which must have its captions in their order."""
    fetch = f"Fetch it with: {PROMPT_SETS['coco-10k'].fetch}"
    if len(rows) != COCO_ROWS:
        raise UserError(f"{file} (source=, --from) has {len(rows)} rows; the published subset has {COCO_ROWS}. {fetch}")
    texts = "\n".join(prompt_of(row, f"{file}, row {place}").text for place, row in enumerate(rows, start=1))
    found = hashlib.sha256(texts.encode()).hexdigest()
    if found != COCO_PROMPTS:
        raise UserError(
            f"{file} (source=, --from) has as many rows as the published subset, but other captions, or another order "
            f"(expected the SHA-256 {COCO_PROMPTS}, got {found}). {fetch}"
        )
    return list(rows)


PROMPT_SETS = {
    "i2p-nudity": PromptSet(
        description="UnlearnDiffAtk's 142 prompts of I2P, on which the nudity score is published",
        select=i2p_nudity,
        fetch=f"curl -L -O {UNLEARNDIFFATK}/i2p.csv && metaunlearn data prompts i2p-nudity --from i2p.csv "
        "--out nudity.jsonl; or, for the cache, hf download AIML-TUDA/i2p i2p_benchmark.csv "
        "--repo-type dataset --revision 6594f223b0544fcbf63a6889417a6b9d2e40a77c",
        cached=("AIML-TUDA/i2p", "6594f223b0544fcbf63a6889417a6b9d2e40a77c", "i2p_benchmark.csv"),
    ),
    "coco-10k": PromptSet(
        description="the 10k subset of COCO-30k, 9,969 captions, for FID and CLIP score",
        select=coco_10k,
        fetch=f"curl -L -O {UNLEARNDIFFATK}/coco_10k.csv && metaunlearn data prompts coco-10k --from coco_10k.csv "
        "--out coco.jsonl",
    ),
}
"""By name."""


def _cached(name: str, wanted: PromptSet) -> Path:
    """The copy in the hub's cache."""
    if wanted.cached is not None:
        from huggingface_hub import try_to_load_from_cache

        repository, revision, file = wanted.cached
        found = try_to_load_from_cache(repository, file, revision=revision, repo_type="dataset")
        if isinstance(found, str):
            return Path(found)
    raise UserError(
        f"The prompt set {name!r} needs your own copy (source=, --from FILE): it is not shipped and not in the cache. "
        f"Fetch one: {wanted.fetch}"
    )


def _record(prompt: Prompt) -> dict[str, Any]:
    record = {"prompt": prompt.text, "seed": prompt.seed, "guidance_scale": prompt.guidance_scale}
    return {key: value for key, value in record.items() if value is not None}
