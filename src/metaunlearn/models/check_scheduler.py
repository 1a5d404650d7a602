"""Which of diffusers' schedulers draw as the denoiser was trained, from noise to a picture."""

from __future__ import annotations

from typing import Any

from metaunlearn.diffusion import NoiseSchedule
from metaunlearn.errors import UserError

ANOTHER = "save the pipeline with a DDIM, DPM-Solver++, PNDM, LMS or Euler scheduler"


def check_scheduler(scheduler: Any) -> None:
    """UserError unless ``scheduler`` takes pure noise to a picture along the noise levels of training."""
    name, config = type(scheduler).__name__, scheduler.config
    NoiseSchedule.of(scheduler)
    lacking = [what for what in ("add_noise", "order", "set_timesteps") if not hasattr(scheduler, what)]
    if lacking or "Inverse" in name:
        why = f"it has no {' and no '.join(lacking)}" if lacking else "it goes from a picture to noise"
        raise UserError(f"MODEL's scheduler {name} cannot draw pictures with its pipeline: {why}; {ANOTHER}.")
    if config.get("use_flow_sigmas"):
        raise UserError(
            f"MODEL's scheduler {name} samples along a flow's noise levels (use_flow_sigmas), which are not those that "
            f"it trains on (alphas_cumprod). Set use_flow_sigmas to false, or {ANOTHER}."
        )
    if str(config.get("variance_type", "")).startswith("learned"):
        raise UserError(
            f"MODEL's scheduler {name} takes how uncertain a prediction is from the denoiser (variance_type="
            f"{config.variance_type}), which says nothing of it. Set variance_type to 'fixed_small' in "
            "scheduler/scheduler_config.json (pipeline.scheduler)."
        )
