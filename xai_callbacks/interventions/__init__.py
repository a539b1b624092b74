"""Edits of images, to see what a model makes of them: conditions under which a photo is taken or stored."""

from xai_callbacks.interventions.conditions import CONDITIONS, LEVELS, apply_condition, condition_probes

__all__ = ["CONDITIONS", "LEVELS", "apply_condition", "condition_probes"]
