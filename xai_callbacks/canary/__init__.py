"""The canary: how weak a shortcut an audit would have seen, found out by planting some."""

from xai_callbacks.canary.planting import canary
from xai_callbacks.canary.power import Planted, Power

__all__ = ["Planted", "Power", "canary"]
