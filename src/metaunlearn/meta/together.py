"""What several processes that share one run cannot share: refused before any work."""

from __future__ import annotations

from metaunlearn.config import EraseSettings
from metaunlearn.errors import UserError
from metaunlearn.meta.objective import retain_weights, zeta_weights
from metaunlearn.processes import Processes


def check_shares(settings: EraseSettings, processes: Processes, *, meta: bool) -> None:
    """UserError unless ``processes`` can share the batches so that the mean of their means is the mean."""
    size = settings.batch_size
    processes.check_divides(size, "batches")
    weights = retain_weights(settings) or (zeta_weights(settings) if meta else None)
    if weights is not None:  # Two means: each kind of its own.
        processes.check_divides(size // 2, "related pictures, which have a weight of their own, in batches")
        processes.check_divides(size - size // 2, "unrelated pictures, which have a weight of their own, in batches")


def check_sharded(settings: EraseSettings, *, meta: bool, defended: bool = False) -> None:
    """UserError for what cannot be had of parameters that are shared out over processes."""
    if defended:
        raise UserError(
            "a method with a defence of its own does not work with parameters that are shared out over processes "
            "(sharded=true): choose another (method=..., --method esd-u-1), or sharded=false (--set sharded=false)."
        )
    wanted = {"teacher_precision": "float32", "outer_optimizer": "adamw", "inner_store": "device"}
    for key in ("meta_gradient", "diagnostics_exact") if meta else ():
        if getattr(settings, key) == "double-backward":
            wanted[key] = "gradient-difference"
    for key, value in wanted.items():
        if getattr(settings, key) != value:
            raise UserError(
                f"{key}={getattr(settings, key)} does not work with parameters that are shared out over processes "
                f"(sharded=true). Choose {key}={value} (--set {key}=...), or sharded=false."
            )
