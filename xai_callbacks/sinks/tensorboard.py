"""Audits in TensorBoard."""

from collections.abc import Iterable
from typing import Any

from xai_callbacks.errors import ConfigurationError, require_bool, require_instance, require_name
from xai_callbacks.gallery import Picture
from xai_callbacks.record import AuditRecord
from xai_callbacks.sinks.base import Sink, detail_scalars, findings_text, finite, key_charts, main_scalars


class TensorBoardSink(Sink):
    """Writes audits to TensorBoard, through a `SummaryWriter` or anything that has `add_image`.

    | page | tag | content |
    |---|---|---|
    | Images | that of the picture | pictures, one a step |
    | Text | `<name>/findings` | findings of the rules |
    | Histograms | `<name>_summary/scores_<score>` | novelty scores of the probes |
    | Custom scalars | | charts of the key metrics, with threshold and chance level in the title |
    | Scalars | `<name>/<key>`, `<name>_range/<key>/low`, `/high` | metrics, and the intervals that charts draw |

    TensorBoard's page keeps ten images of a tag, chosen at random but for the last, unless it is started with
    `--samples_per_plugin images=100`; the event file has them all.

    Args:
        writer: The writer; it stays open, it is the user's.
        scalars: Whether to write the scalars as well; a callback leaves them to the loggers.
        tag_prefix: What the run's logger puts before every scalar tag, so that the custom scalars page finds them.
        name: What all tags begin with; audits of several callbacks in one writer need different ones.

    Raises a `ConfigurationError` if an argument is of a wrong type.
    """

    def __init__(self, writer: Any, *, scalars: bool = True, tag_prefix: str = "", name: str = "audit") -> None:
        if not callable(getattr(writer, "add_image", None)):
            raise ConfigurationError(
                f"Expected `writer` to be a SummaryWriter of torch.utils.tensorboard, or like one, but got {writer!r}."
            )
        require_bool("scalars", scalars)
        require_instance("tag_prefix", tag_prefix, str, "a text")
        require_name("`name`", name)
        self._writer, self._scalars, self._tag_prefix, self._name = writer, scalars, tag_prefix, name
        self._charts: dict[str, tuple[str, list[object]]] = {}

    def write(self, record: AuditRecord, pictures: Iterable[Picture]) -> None:
        """Write one audit; the file is flushed."""
        if self._scalars:
            for tag, value in finite(main_scalars(record, self._name) | detail_scalars(record, self._name)).items():
                self._call("add_scalar", tag, value, record.step)
        for score, values in record.scores.items():
            shown = values[values.isfinite()]
            if len(shown):
                self._call("add_histogram", f"{self._name}_summary/scores_{score}", shown.numpy(), record.step)
        if text := findings_text(record):
            self._call("add_text", f"{self._name}/findings", text, record.step)
        self._lay_out(record)
        for picture in pictures:
            self._show(picture)
        self._call("flush")

    def _show(self, picture: Picture) -> None:
        """Put the encoded picture into the event file, or hand pixels to a writer with an `add_image` of its own."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from torch.utils.tensorboard import SummaryWriter

        if getattr(type(self._writer), "add_image", None) is not SummaryWriter.add_image:
            self._writer.add_image(picture.tag, picture.pixels, picture.step, dataformats="HWC")
            return
        height, width = picture.pixels.shape[:2]
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=picture.encoded)
        summary = Summary(value=[Summary.Value(tag=picture.tag, image=image)])
        self._writer._get_file_writer().add_summary(summary, picture.step)

    def _lay_out(self, record: AuditRecord) -> None:
        """Describe the custom scalars page when its charts change; a chart stays if an audit has no value for it."""
        charts = self._charts | key_charts(record, self._tag_prefix, self._name)
        if [chart for _, chart in charts.values()] != [chart for _, chart in self._charts.values()]:
            self._call("add_custom_scalars", {f"{self._name}: key metrics": dict(charts.values())})
        self._charts = charts

    def _call(self, method: str, *arguments: object) -> None:
        if callable(found := getattr(self._writer, method, None)):
            found(*arguments)
