"""What a callback disturbs in a training."""

from xai_callbacks.doctor.comparing import Disturbance
from xai_callbacks.doctor.diagnosis import Diagnosis, diagnose

__all__ = ["Diagnosis", "Disturbance", "diagnose"]
