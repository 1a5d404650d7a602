"""What to switch on when a job does not fit, in the order of what it costs.

First what leaves every value as it is and costs time, then what changes values, the least first. What each saves is the
difference of two counts (``counting.py``), but for the precision of products, whose workspace and activations no count
knows: there it is not said. Last what saves something only once the others are on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from metaunlearn.config import EraseSettings
from metaunlearn.overrides import as_overrides


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One thing to switch on."""

    overrides: tuple[str, ...]
    """For ``--set``."""
    costs: str
    """What it costs beside memory."""
    saves_bytes: int | None
    """When it alone is switched on; of what saves something only after the others, with everything before it. None: it
    is not counted, and a measurement (``measured=True``) with it would have to say."""
    left_bytes: int
    """What the job needs with this and everything before it; what is not counted saves nothing here."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Switch:
    costs: str
    applies: Callable[[EraseSettings, str], dict[str, Any]]
    """(settings, device) -> what to set; empty where it is on already or would not help."""
    counted: bool = True
    """Whether the count knows what it saves."""


def _difference(s: EraseSettings, device: str) -> dict[str, Any]:
    exact = s.meta_gradient in ("auto", "double-backward")
    return {"meta_gradient": "gradient-difference"} if exact else {}


def _host(s: EraseSettings, device: str) -> dict[str, Any]:
    return {"inner_store": "host"} if device != "cpu" and s.inner_store == "device" else {}


def _checkpoint(s: EraseSettings, device: str) -> dict[str, Any]:
    return {} if s.gradient_checkpointing else {"gradient_checkpointing": True}


def _disk(s: EraseSettings, device: str) -> dict[str, Any]:
    # Off a GPU the host is as good; without one it is the same memory.
    return {"inner_store": "disk"} if device == "cpu" and s.inner_store != "disk" else {}


def _teacher(s: EraseSettings, device: str) -> dict[str, Any]:
    return {"teacher_precision": "bf16"} if s.teacher_precision == "float32" else {}


def _eight_bits(s: EraseSettings, device: str) -> dict[str, Any]:
    on_gpu = device.startswith("cuda")  # bitsandbytes wants one
    return {"outer_optimizer": "adamw-8bit"} if on_gpu and s.outer_optimizer == "adamw" else {}


def _bfloat16(s: EraseSettings, device: str) -> dict[str, Any]:
    on_gpu = device.startswith("cuda")
    return {"precision": "bf16"} if on_gpu and s.precision in ("float32", "tf32") else {}


def _tensor_cores(s: EraseSettings, device: str) -> dict[str, Any]:
    differs = s.meta_gradient in ("auto", "gradient-difference") and s.difference_precision == "float32"
    return {"difference_precision": "tf32"} if device.startswith("cuda") and differs else {}


def _fewer_pictures(s: EraseSettings, device: str) -> dict[str, Any]:
    return {} if s.picture_batch == 1 else {"picture_batch": 1}


def _smaller_batch(s: EraseSettings, device: str) -> dict[str, Any]:
    # As far as two kinds of retained pictures fit into a batch; the same number of pictures altogether.
    factor = next((n for n in range(s.batch_size, 1, -1) if s.batch_size % n == 0 and s.batch_size // n >= 2), 1)
    return {"batch_size": s.batch_size // factor, "accumulation": s.accumulation * factor} if factor > 1 else {}


def _first_order(s: EraseSettings, device: str) -> dict[str, Any]:
    return {} if s.meta_gradient == "first-order" else {"meta_gradient": "first-order"}


SWITCHES = (
    _Switch("nothing: faster, and exact to five digits or so", _difference),
    _Switch("copies to the host and back; the same values", _host),
    _Switch("more time for MODEL's own pictures, one at a time; the same values but for rounding", _fewer_pictures),
    _Switch("a third more time; the same values", _checkpoint),
    _Switch("writing and reading files; the same values", _disk),
    _Switch("the teacher's answers have three digits", _teacher),
    _Switch("the gradients at theta, and first order's, have three digits; faster", _bfloat16, counted=False),
    _Switch("the optimiser's moments have eight bits", _eight_bits),
    _Switch("the meta-gradient has two digits; faster; diagnoses stay in 24 bits", _tensor_cores, counted=False),
    _Switch("more time; as many pictures a step, but fewer in the simulated attacker's batches", _smaller_batch),
    _Switch("the meta-gradient is another one, without the way back through the simulated finetuning", _first_order),
)
"""In the order of what they cost."""


def advise(
    settings: EraseSettings,
    count: Callable[[EraseSettings], int],
    *,
    needs: int,
    device: str,
    skip: Sequence[str] = (),
) -> tuple[Advice, ...]:
    """What saves memory and is not on already; ``count`` gives a job's bytes, and this one ``needs`` so many.

    ``skip``: settings that the method does not read.
    """
    start = count(settings)
    found: dict[_Switch, Advice] = {}
    together = settings
    for alone in (True, False):
        for switch in SWITCHES:
            change = switch.applies(settings, device)
            if not change or switch in found or set(change) & set(skip):
                continue
            before = settings if alone else together
            saves = count(before) - count(before.model_copy(update=change)) if switch.counted else None
            if saves is not None and saves <= 0:
                continue
            together = together.model_copy(update=change)
            found[switch] = Advice(
                overrides=tuple(as_overrides(change)),
                costs=switch.costs,
                saves_bytes=saves,
                left_bytes=needs - (start - count(together)),
            )
    return tuple(found.values())
