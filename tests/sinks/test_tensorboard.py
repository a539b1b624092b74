"""What is in the event files, read by TensorBoard's own reader."""

from __future__ import annotations

import dataclasses
import io
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.plugins.custom_scalar import layout_pb2, metadata
from torch.utils.tensorboard import SummaryWriter

from tests.tiny import image_steps, read_events, scalar_steps, tiny_net, tiny_probes
from xai_callbacks import Auditor, Every, GradCAM, Occlusion, TensorBoardSink, Why
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.sinks import PictureBook
from xai_callbacks.sinks.scalars import layout


@pytest.fixture(scope="module")
def record():
    return Auditor(tiny_probes()).audit(tiny_net())


def written(folder, records, probes=None, **options):
    with SummaryWriter(folder) as writer:
        sink = TensorBoardSink(writer, probes or tiny_probes(), **options)
        for record in records:
            sink.write(record)
        sink.close()
    return read_events(folder), sink


def at_steps(record, steps):
    return [dataclasses.replace(record, step=step) for step in steps]


def picture(event):
    return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))


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


def test_each_drawn_probe_has_a_panel_and_a_filmstrip_at_every_audit(tmp_path, record):
    events, _ = written(tmp_path, at_steps(record, [0, 10]), max_panels=2)

    assert sorted(events.Tags()["images"]) == [
        *(f"audit_filmstrip/{name}" for name in ("000_probe_000", "005_probe_005")),
        "audit_novelty/gradnorm/most_novel",
        *(f"audit_panel/{name}" for name in ("000_probe_000", "005_probe_005")),
    ]
    for tag in events.Tags()["images"]:
        assert image_steps(events, tag) == [0, 10]


def test_pictures_arrive_pixel_by_pixel(tmp_path, record):
    events, _ = written(tmp_path, [record], max_panels=1)
    expected = PictureBook(tiny_probes(), 1).panel(record, 0)
    assert np.array_equal(picture(events.Images("audit_panel/000_probe_000")[0]), expected)


def test_scalars_are_those_of_the_record(tmp_path, record):
    events, _ = written(tmp_path, at_steps(record, [3, 9]), max_panels=0)

    for key, estimate in record.metrics.items():
        assert [event.value for event in events.Scalars(f"audit/{key}")] == pytest.approx([estimate.value] * 2)
        assert scalar_steps(events, f"audit/{key}") == [3, 9]
    area = events.Scalars("audit_detail/gradcam/why/relevance_mass/core/chance")[0].value
    assert area == pytest.approx(0.25)
    assert events.Tags()["images"] == []


def test_scalars_can_be_left_to_somebody_else(tmp_path, record):
    events, _ = written(tmp_path, [record], max_panels=1, scalars=False)
    assert events.Tags()["scalars"] == []
    assert len(events.Tags()["images"]) == 3


def test_metrics_without_a_value_are_left_out(tmp_path, record):
    key = "gradcam/why/relevance_mass/core"
    nothing = record.metrics[key]._replace(value=math.nan, chance=math.nan, valid=0, degenerate=6)
    empty = dataclasses.replace(record, metrics={**record.metrics, key: nothing})
    events, _ = written(tmp_path, [empty], max_panels=0)

    assert f"audit/{key}" not in events.Tags()["scalars"]
    assert events.Scalars(f"audit_detail/{key}/degenerate")[0].value == 6
    tags = {tag for charts in pages(events)[-1].values() for tags in charts.values() for tag in tags}
    assert tags <= set(events.Tags()["scalars"])


def test_layout_is_written_once_and_again_when_metrics_join(tmp_path):
    auditor, net = Auditor(tiny_probes(3)), tiny_net()
    records = [auditor.audit(net, step=step) for step in range(4)]
    events, _ = written(tmp_path, records, tiny_probes(3), max_panels=0)

    first, second = pages(events)
    assert "drift" not in first["audit: gradcam why"]
    assert second["audit: gradcam why"]["drift"] == ["audit/gradcam/why/drift"]
    title = "relevance mass, core (chance 0.25)"
    tags = ["audit/gradcam/why/relevance_mass/core"]
    assert second["audit: gradcam why"][title] == first["audit: gradcam why"][title] == tags
    assert {title: set(charts) for title, charts in second.items()} == {
        title: set(charts) for title, charts in layout(records[1].metrics, explainers=["gradcam"]).items()
    }
    tags = {tag for charts in second.values() for tags in charts.values() for tag in tags}
    assert tags <= set(events.Tags()["scalars"])


def test_charts_stay_when_a_later_audit_has_no_value_for_them(tmp_path):
    auditor, net = Auditor(tiny_probes(3)), tiny_net()
    first, second = auditor.audit(net, step=0), auditor.audit(net, step=1)
    key = "gradcam/why/soft_iou/core"
    nothing = second.metrics[key]._replace(value=math.nan)
    second = dataclasses.replace(second, metrics={**second.metrics, key: nothing})
    events, _ = written(tmp_path, [first, second], tiny_probes(3), max_panels=0)
    assert "soft iou, core (chance 0.57)" in pages(events)[-1]["audit: gradcam why"]


def test_charts_of_an_explainer_that_answers_now_and_then_stay_where_they_are(tmp_path):
    probes = tiny_probes(3)
    auditor, net = Auditor(probes, [Why()], explainers=[GradCAM(), Every(2, Occlusion(4))]), tiny_net()
    records = [auditor.audit(net, step=step) for step in range(3)]
    events, _ = written(tmp_path, records, probes, max_panels=0)

    for page in pages(events):
        assert {"audit: gradcam why", "audit: occlusion why"} <= page.keys()
        assert "audit: occlusion" not in page
    assert "drift" in pages(events)[-1]["audit: occlusion why"]
    assert scalar_steps(events, "audit/occlusion/why/drift") == [2]
    assert scalar_steps(events, "audit/occlusion/why/relevance_mass/core") == [0, 2]
    assert scalar_steps(events, "audit/gradcam/why/relevance_mass/core") == [0, 1, 2]


def test_an_audit_without_heatmaps_has_panels_and_no_filmstrips(tmp_path):
    probes = tiny_probes(3)
    record = Auditor(probes, explainers=[]).audit(tiny_net(), step=5)
    events, _ = written(tmp_path, [record], probes, max_panels=2)

    assert sorted(events.Tags()["images"]) == [
        "audit_novelty/gradnorm/most_novel",
        "audit_panel/000_probe_000",
        "audit_panel/002_probe_002",
    ]
    assert image_steps(events, "audit_panel/000_probe_000") == [5]


def test_filmstrip_of_twelve_audits_shows_the_first_and_the_last(tmp_path):
    probes, auditor = tiny_probes(2), Auditor(tiny_probes(2))
    records = [auditor.audit(tiny_net(seed=step), step=step) for step in range(12)]
    events, sink = written(tmp_path, records, probes, max_panels=1)

    shown = sink.film.frames
    assert len(shown) == 8
    assert (shown[0].step, shown[-1].step) == (0, 11)
    tag = "audit_filmstrip/000_probe_000"
    assert image_steps(events, tag) == list(range(12))
    expected = PictureBook(probes, 1).filmstrip(shown, records[-1].headings, 0)
    assert np.array_equal(picture(events.Images(tag)[-1]), expected)
    without_the_first = PictureBook(probes, 1).filmstrip(shown[1:], records[-1].headings, 0)
    assert not np.array_equal(expected, without_the_first)


class FullDisk(SummaryWriter):
    """A real writer on a disk that is full."""

    def add_image(self, *args, **kwargs):
        raise OSError(28, "No space left on device")


def test_error_of_the_writer_comes_to_light_when_closing(tmp_path, record):
    writer = FullDisk(tmp_path)
    sink = TensorBoardSink(writer, tiny_probes(), max_panels=1)
    sink.write(record)
    with pytest.raises(OSError, match="No space left"):
        sink.close()
    sink.close()  # told once
    writer.close()


def test_error_of_flushing_is_handed_on_with_those_of_drawing(tmp_path, record):
    class Broken(FullDisk):
        def flush(self):
            raise OSError(5, "Input/output error")

    sink = TensorBoardSink(Broken(tmp_path), tiny_probes(), max_panels=1)
    sink.write(record)
    assert [error.errno for error in sink.drain()] == [28, 5]


def test_drained_sink_goes_on(tmp_path, record):
    with SummaryWriter(tmp_path) as writer:
        sink = TensorBoardSink(writer, tiny_probes(), max_panels=1)
        for one in at_steps(record, [1, 2]):
            sink.write(one)
            assert sink.drain() == []
    assert image_steps(read_events(tmp_path), "audit_panel/000_probe_000") == [1, 2]
    assert [frame.step for frame in sink.film.frames] == [1, 2]


def test_pictures_are_written_although_nobody_closes_the_sink(tmp_path):
    script = f"""
from torch.utils.tensorboard import SummaryWriter
from tests.tiny import tiny_net, tiny_probes
from xai_callbacks import Auditor, TensorBoardSink
sink = TensorBoardSink(SummaryWriter({str(tmp_path)!r}), tiny_probes())
sink.write(Auditor(tiny_probes()).audit(tiny_net(), step=3))
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).resolve().parents[2])
    assert image_steps(read_events(tmp_path), "audit_panel/000_probe_000") == [3]


@pytest.mark.parametrize(
    "wrong",
    [
        *({"writer": value} for value in (None, "runs/1", 5, object())),
        *({"probes": value} for value in (None, "probes.safetensors", [], 5)),
        *({"max_panels": value} for value in (None, "4", 1.5, True, -1)),
        *({"scale": value} for value in ("logit", 5, [0, 1])),
        *({"scalars": value} for value in (None, "yes", 1)),
        *({"tag_prefix": value} for value in (None, 5, ["a"])),
        *({"name": value} for value in (None, 5, "", "a b", ["a"])),
    ],
)
def test_wrong_arguments_are_refused_at_construction(tmp_path, wrong):
    with SummaryWriter(tmp_path) as writer, pytest.raises(ConfigurationError, match=f"Expected `{next(iter(wrong))}`"):
        TensorBoardSink(**({"writer": writer, "probes": tiny_probes()} | wrong))


def test_a_sink_is_closed_by_its_block(tmp_path, record):
    with SummaryWriter(tmp_path) as writer:
        with TensorBoardSink(writer, tiny_probes(), max_panels=1) as sink:
            sink.write(record)
        assert sink.errors() == []
    assert len(image_steps(read_events(tmp_path), "audit_panel/000_probe_000")) == 1
