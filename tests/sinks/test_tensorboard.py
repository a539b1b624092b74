"""Event files, read by TensorBoard's own reader."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from tensorboard.plugins.custom_scalar import layout_pb2, metadata
from torch.utils.tensorboard import SummaryWriter

from tests.sinks.given import ALARM, FULL, PLAIN, a_picture, a_record, decoded
from tests.tiny import image_steps, read_events, scalar_steps
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.record import Estimate
from xai_callbacks.sinks import TensorBoardSink
from xai_callbacks.sinks.base import key_charts


def written(folder, records, pictures=(), **options):
    with SummaryWriter(folder) as writer:
        sink = TensorBoardSink(writer, **options)
        for record in records:
            sink.write(record, pictures)
        sink.close()
    return read_events(folder)


def pages(events):
    """The layouts written so far, as `{category: {chart: tags}}`."""
    found = []
    for event in events.Tensors(metadata.CONFIG_SUMMARY_TAG):
        page = layout_pb2.Layout()
        page.ParseFromString(event.tensor_proto.string_val[0])
        found.append(
            {
                category.title: {
                    chart.title: [
                        *chart.multiline.tag,
                        *(tag for s in chart.margin.series for tag in (s.value, s.lower, s.upper)),
                    ]
                    for chart in category.chart
                }
                for category in page.category
            }
        )
    return found


@pytest.mark.parametrize("colour", [None, (200, 30, 40)])
def test_a_picture_is_written_as_it_is_encoded(tmp_path, colour):
    picture = a_picture(step=7, colour=colour)
    events = written(tmp_path, [a_record(7)], [picture])
    (event,) = events.Images("audit_panel/003_cat")
    assert (event.step, event.width, event.height) == (7, 32, 24)
    assert event.encoded_image_string == picture.encoded
    assert picture.mime == ("image/jpeg" if colour is None else "image/png")


def test_a_writer_with_an_add_image_of_its_own_is_given_pixels(tmp_path):
    class Own(SummaryWriter):
        def add_image(self, tag, pixels, step, *, dataformats):
            super().add_image(f"own/{tag}", pixels, step, dataformats=dataformats)

    picture = a_picture(step=7)
    with Own(tmp_path) as writer:
        TensorBoardSink(writer).write(a_record(7), [picture])
    (event,) = read_events(tmp_path).Images("own/audit_panel/003_cat")
    assert np.array_equal(decoded(event.encoded_image_string), picture.pixels)


def test_a_writer_of_images_alone_is_given_nothing_else():
    class Images:
        tags = ()

        def add_image(self, tag, pixels, step, *, dataformats):
            self.tags += (tag,)

    writer = Images()
    TensorBoardSink(writer).write(a_record(), [a_picture()])
    assert writer.tags == ("audit_panel/003_cat",)


def test_pictures_can_be_read_at_once(tmp_path):
    writer = SummaryWriter(tmp_path)
    TensorBoardSink(writer).write(a_record(), [a_picture()])
    assert image_steps(read_events(tmp_path), "audit_panel/003_cat") == [1]
    writer.close()


def test_scalars_are_those_of_the_record(tmp_path):
    record = a_record(3, metrics={"cue/patch/effect": FULL, "drift": PLAIN, "empty": Estimate(math.nan)})
    events = written(tmp_path, [record, a_record(9)])
    assert scalar_steps(events, "audit/cue/patch/effect") == [3, 9]
    assert [event.value for event in events.Scalars("audit_range/cue/patch/effect/high")] == [0.75, 0.75]
    assert scalar_steps(events, "audit/drift") == [3]
    assert "audit/empty" not in events.Tags()["scalars"]


def test_scalars_can_be_left_to_the_logger(tmp_path):
    events = written(tmp_path, [a_record()], scalars=False)
    assert events.Tags()["scalars"] == []
    assert len(pages(events)) == 1


def test_novelty_scores_are_histograms_of_what_is_finite(tmp_path):
    values = torch.tensor([0.0, 0.25, math.nan, 1.0, math.inf], dtype=torch.float64)
    nothing = torch.full((3,), math.nan, dtype=torch.float64)
    events = written(tmp_path, [a_record(2, scores={"gradnorm": values, "odin": nothing})])
    assert events.Tags()["histograms"] == ["audit_summary/scores_gradnorm"]
    (event,) = events.Histograms("audit_summary/scores_gradnorm")
    assert (event.step, event.histogram_value.num, event.histogram_value.sum) == (2, 3, 1.25)


def test_findings_are_text_the_most_alarming_first(tmp_path):
    record = a_record(4, failed=("GradCAM() failed: no memory.",))
    events = written(tmp_path, [record, a_record(5, findings=())])
    (event,) = events.Tensors("audit/findings/text_summary")
    assert event.step == 4
    assert event.tensor_proto.string_val[0].decode() == (
        "- **alarm** The cue patch is \\*used\\* \\<b>since\\</b> epoch 3.\n"
        "- **pass** accuracy > 0.2.\n"
        "- **left out** GradCAM() failed: no memory."
    )


def test_the_page_of_charts_is_written_once_and_again_when_key_metrics_join(tmp_path):
    joins = dataclasses.replace(ALARM, about="gradcam/why/relevance_mass/core", threshold=None)
    more = a_record(3, findings=(joins,))
    events = written(tmp_path, [a_record(1), a_record(2), more, a_record(4)])
    first, second = pages(events)
    assert first == {"audit: key metrics": {title: tags for title, (_, tags) in key_charts(a_record()).values()}}
    # They stay although the third audit says nothing of them, and the fourth nothing of its own.
    assert list(second["audit: key metrics"]) == [
        *first["audit: key metrics"], "gradcam/why/relevance_mass/core (chance 0.1)",
    ]  # fmt: skip
    tags = {tag for charts in second.values() for tags in charts.values() for tag in tags}
    assert tags <= set(events.Tags()["scalars"])


def test_tags_begin_with_name_and_prefix(tmp_path):
    events = written(tmp_path, [a_record()], tag_prefix="run7-", name="night", scalars=False)
    assert events.Tags()["histograms"] == ["night_summary/scores_gradnorm"]
    (page,) = pages(events)
    assert page["night: key metrics"]["accuracy (threshold 0.2)"] == ["run7-night/accuracy"]


def test_an_error_of_the_writer_is_raised(tmp_path):
    class FullDisk(SummaryWriter):
        def add_image(self, *args, **kwargs):
            raise OSError(28, "No space left on device")

    with FullDisk(tmp_path) as writer, pytest.raises(OSError, match="No space left"):
        TensorBoardSink(writer).write(a_record(), [a_picture()])


@pytest.mark.parametrize(
    "wrong",
    [
        *({"writer": value} for value in (None, "runs/1", 5, object())),
        *({"scalars": value} for value in (None, "yes", 1)),
        *({"tag_prefix": value} for value in (None, 5, ["a"])),
        *({"name": value} for value in (None, 5, "", "a b", ["a"])),
    ],
)
def test_wrong_arguments_are_refused_at_construction(tmp_path, wrong):
    with SummaryWriter(tmp_path) as writer, pytest.raises(ConfigurationError, match=f"Expected `{next(iter(wrong))}`"):
        TensorBoardSink(**({"writer": writer} | wrong))
