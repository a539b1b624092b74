"""How a model is touched without being disturbed."""

from xai_callbacks.access.capture import Captured, Tapped, capture, tap
from xai_callbacks.access.guard import undisturbed
from xai_callbacks.access.layers import TargetLayer, choose_layer, name_layer
from xai_callbacks.access.layouts import FeatureLayout, LayoutName
from xai_callbacks.access.outputs import OutputSelector
from xai_callbacks.access.randomised import randomised_copy
from xai_callbacks.access.subject import ModelSelector, Subject
from xai_callbacks.access.trace import Call, Trace, trace_model

__all__ = [
    "Call",
    "Captured",
    "FeatureLayout",
    "LayoutName",
    "ModelSelector",
    "OutputSelector",
    "Subject",
    "Tapped",
    "TargetLayer",
    "Trace",
    "capture",
    "choose_layer",
    "name_layer",
    "randomised_copy",
    "tap",
    "trace_model",
    "undisturbed",
]
