"""What is looked at: a fixed set of images, and what is known of each.

`ProbeSet` holds the images as the model expects them together with labels or targets, names, groups and region masks.
Build one from a dataset, from a folder or from tensors; save it beside a run so that checkpoints are compared on the
same images.
"""

from xai_callbacks.probes.probe_set import ProbeSet

__all__ = ["ProbeSet"]
