"""How a model is touched without being disturbed."""

from xai_callbacks.access.features import features, stages_of
from xai_callbacks.access.forward import Forward, forward
from xai_callbacks.access.guard import undisturbed
from xai_callbacks.access.layers import Layer, NoFeatureMapError, choose_layer, name_layer
from xai_callbacks.access.layouts import FeatureLayout, LayoutName
from xai_callbacks.access.randomised import randomised_copy
from xai_callbacks.access.subject import Model, ModelSelector, OutputSelector, Subject, as_module, check_selectors
from xai_callbacks.access.trace import Trace, trace_model
from xai_callbacks.access.watching import Address, Tapped, capture, tap

__all__ = [
    "Address", "FeatureLayout", "Forward", "Layer", "LayoutName", "Model", "ModelSelector", "NoFeatureMapError",
    "OutputSelector", "Subject", "Tapped", "Trace", "as_module", "capture", "check_selectors", "choose_layer",
    "features", "forward", "name_layer", "randomised_copy", "stages_of", "tap", "trace_model", "undisturbed",
]  # fmt: skip
