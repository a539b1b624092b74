"""Probes: a fixed set of images, and what is known of each."""

from xai_callbacks.probes.probe_set import ProbeSet

__all__ = ["ProbeSet"]
