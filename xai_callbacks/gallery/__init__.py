"""Pictures of a history."""

from xai_callbacks.gallery.gallery import Gallery
from xai_callbacks.gallery.heat import color_scale, density
from xai_callbacks.gallery.picture import Picture

__all__ = ["Gallery", "Picture", "color_scale", "density"]
