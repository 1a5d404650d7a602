"""A weight delta: what erasing changed, as a file that is useless without the base model.

Adding float differences is not exact: a + (b - a) need not be b. So the difference is taken of the *bits*: floats read
as integers of the same width, subtracted and added modulo 2^32 (2^16 in half precision): exact for every number.
Tensors that did not change are left out. The delta names the SHA-256 of each of the base's components, changed or not,
of its vocabularies and its noise schedule, and of the result's changed components; all are checked when it is applied.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from metaunlearn.errors import RunError, UserError
from metaunlearn.files import check_new_file, needed_path, sha256, whole_or_absent
from metaunlearn.models import adapt, in_float32, load_pipeline
from metaunlearn.models.checks import FAMILIES, TOKENIZERS, check_pipeline
from metaunlearn.models.trained_schedule import trained_with
from metaunlearn.parameters import digest
from metaunlearn.pipelines import save_pipeline
from metaunlearn.runs import RunFolder

DELTA_FILE = "delta.safetensors"
FORMAT = "1"
METADATA = "metaunlearn.delta"
"""The key of the file's metadata."""
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes a number."""


def bit_difference(before: Tensor, after: Tensor) -> Tensor:
    """bits(after) - bits(before), integers of the same width and shape, modulo 2^width."""
    return _bits(after) - _bits(before)


def moved_bits(before: Tensor, difference: Tensor) -> Tensor:
    """The inverse: the floats whose bits are bits(before) + ``difference``; same dtype and shape as ``before``."""
    return (_bits(before) + difference).view(before.dtype)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().view(INTEGERS[tensor.element_size()])


def make_delta(base: Any, model: Any, out: Path | str) -> dict[str, Any]:
    """Write what turns ``base`` into ``model``, MODELs or pipelines of the same architecture, to the file ``out``.

    Returns what the command line prints with ``--json``. Raises UserError before any work.
    """
    out = needed_path(out, "out=, --out FILE")
    check_new_file(out, ".safetensors")
    one, other = (in_float32(load_pipeline(given)) for given in (base, model))
    before, after = _modules(one), _modules(other)
    _check_same(before, after)
    others = _others(one)
    if different := [name for name, found in _others(other).items() if found != others[name]]:
        raise UserError(
            f"the two models differ in {' and '.join(different)}, which has no weights, so no delta makes one of the "
            "other; give the base and what was erased from it."
        )
    tensors: dict[str, Tensor] = {}
    hashes: dict[str, dict[str, str]] = {"base": {}, "result": {}, "unchanged": others}
    for component, module in before.items():
        own = dict(after[component].named_parameters())
        changed = {name: p for name, p in module.named_parameters() if not torch.equal(_bits(p), _bits(own[name]))}
        hashes["base" if changed else "unchanged"][component] = _hash(module)
        if changed:
            hashes["result"][component] = _hash(after[component])
        tensors |= {f"{component}.{name}": bit_difference(p, own[name]) for name, p in changed.items()}
    if not tensors:
        raise UserError("both models have the same weights, so there is no delta; check which two were given.")
    _write(out, tensors, hashes)
    return {"file": str(out), "tensors": len(tensors), "bytes": out.stat().st_size, **hashes}


def _write(out: Path, tensors: Mapping[str, Tensor], hashes: Mapping[str, Any]) -> None:
    # One entry: safetensors writes several in no fixed order, and equal deltas are to be equal files.
    with whole_or_absent(out) as partial:
        save_file(dict(tensors), partial, {METADATA: json.dumps({"format": FORMAT, **hashes}, sort_keys=True)})


def apply_delta(base: Any, delta: Path | str, out: Path | str) -> dict[str, Any]:
    """Write ``base`` with ``delta`` applied to the new folder ``out``: bit for bit the model that was erased.

    The same call again finishes an ``out`` that was begun, and leaves a complete one as it is. Raises UserError before
    anything is written when ``base`` is not what the delta was made from, and RunError should the result not be what it
    was made to.
    """
    delta, out = needed_path(delta, "delta=, DELTA"), needed_path(out, "out=, --out DIR")
    if not delta.is_file():
        raise UserError(f"there is no delta {delta}; expected a file that erase --delta or metaunlearn delta wrote.")
    try:
        with safe_open(delta, framework="pt") as file:
            hashes = _hashes(delta, dict(file.metadata() or {}))
            pipeline = load_pipeline(base)
            if not isinstance(base, str | Path):
                pipeline = copy.deepcopy(pipeline).to(torch.float32)
            modules = _modules(pipeline)
            whole = _others(pipeline) | {name: _hash(m) for name, m in modules.items()}
            for component, expected in (hashes["base"] | hashes["unchanged"]).items():
                if (found := whole.get(component, "none")) != expected:
                    raise UserError(
                        f"the base's {component} has SHA-256 {found}, but the delta {delta} was made from {expected}; "
                        "give the very model that was erased (BASE)."
                    )
            _add(modules, file)
    except SafetensorError as error:
        raise UserError(f"the delta {delta} cannot be read as a .safetensors file: {error}") from error
    for component, expected in hashes["result"].items():
        if _hash(modules[component]) != expected:
            raise RunError(f"the result's {component} is not what the delta {delta} was made to; its file is damaged.")
    as_it_was = {name: found for name, found in whole.items() if name not in hashes["base"]}
    request = {"command": "apply", "delta": sha256(delta), **hashes, "unchanged": as_it_was}
    folder = RunFolder.open(out, request, resume=True)  # Begun by the same call or, if complete, its result already.
    if not folder.complete_before:
        save_pipeline(adapt(pipeline), out)
        folder.finish()
    return {"out": str(out), "components": sorted(hashes["result"]), "result": hashes["result"]}


def _add(modules: Mapping[str, nn.Module], file: Any) -> None:
    with torch.no_grad():
        for key in file.keys():  # noqa: SIM118  # safe_open's handle is no mapping
            component, _, name = key.partition(".")
            parameter = modules[component].get_parameter(name)
            parameter.copy_(moved_bits(parameter, file.get_tensor(key)))


def _hashes(delta: Path, metadata: Mapping[str, str]) -> dict[str, dict[str, str]]:
    found = json.loads(metadata.get(METADATA, "{}"))
    if found.get("format") != FORMAT:
        raise UserError(
            f"{delta} is no delta of this version (format {found.get('format')}, expected {FORMAT}); make it again "
            "with erase --delta or metaunlearn delta."
        )
    return {key: found.get(key, {}) for key in ("base", "result", "unchanged")}  # Earlier ones had no last.


def _modules(pipeline: Any) -> dict[str, nn.Module]:
    """The components that have weights, but for a safety checker, which most pipelines are loaded without."""
    parts = {name: getattr(pipeline, name) for name in FAMILIES[check_pipeline(pipeline)]}
    return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}


def _hash(module: nn.Module) -> str:
    return digest(dict(module.named_parameters()))


def _others(pipeline: Any) -> dict[str, str]:
    """SHA-256 of what decides a picture beside weights: vocabularies with their lengths, and the noise schedule."""
    scheduler = pipeline.scheduler.config
    told: dict[str, Any] = {"scheduler": [*trained_with(scheduler).values()]}
    for name in TOKENIZERS:
        if (tokenizer := getattr(pipeline, name, None)) is not None:
            told[name] = [sorted(tokenizer.get_vocab().items()), tokenizer.model_max_length]
    return {
        name: hashlib.sha256(json.dumps(facts, default=_numbers).encode()).hexdigest() for name, facts in told.items()
    }


def _numbers(betas: Any) -> Any:
    """A pipeline that is not from a folder may have them as an array."""
    return torch.as_tensor(betas).tolist()


def _check_same(before: Mapping[str, nn.Module], after: Mapping[str, nn.Module]) -> None:
    def shapes(modules: Mapping[str, nn.Module]) -> dict[str, tuple[Any, ...]]:
        return {
            f"{component}.{name}": (tuple(p.shape), p.dtype)
            for component, module in modules.items()
            for name, p in module.named_parameters()
        }

    one, two = shapes(before), shapes(after)
    different = sorted(name for name in {*one, *two} if one.get(name) != two.get(name))
    if different:
        raise UserError(
            f"the two models differ in {len(different)} tensors' shapes, such as {different[0]}; a delta needs two of "
            "the same architecture, the base and what was erased from it."
        )
