"""Pictures of a history."""

from xai_callbacks.gallery.gallery import Gallery, Picture
from xai_callbacks.gallery.heat import color_scale, density

__all__ = ["Gallery", "Picture", "color_scale", "density"]
