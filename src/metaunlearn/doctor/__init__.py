"""What is installed here, and what an erasing job needs of memory and time, before any job is started.

``passes`` says what an outer step asks of the denoiser. ``counting`` counts what that costs, on no device at all;
``measuring`` runs it on the device, where that takes seconds. ``advice`` is for what does not fit.
"""

from metaunlearn.doctor.advice import Advice
from metaunlearn.doctor.counting import (
    EFFICIENCY,
    FLOAT32,
    forward_cost,
    matrix_speed,
    parameter_copies,
    weights_bytes,
)
from metaunlearn.doctor.describing import describe
from metaunlearn.doctor.estimating import JobEstimate, estimate
from metaunlearn.doctor.machine import Machine, inspect_machine

__all__ = [
    "EFFICIENCY",
    "FLOAT32",
    "Advice",
    "JobEstimate",
    "Machine",
    "describe",
    "estimate",
    "forward_cost",
    "inspect_machine",
    "matrix_speed",
    "parameter_copies",
    "weights_bytes",
]
