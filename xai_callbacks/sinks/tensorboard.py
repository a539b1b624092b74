"""Panels, filmstrips and scalars in TensorBoard, through anything that behaves like a `SummaryWriter`."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from types import NoneType
from typing import Any, Protocol, Self

import numpy as np

from xai_callbacks.errors import ConfigurationError, require_bool, require_instance, require_integer, require_name
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import AuditRecord, Estimate, NoveltyRecord
from xai_callbacks.render import ColorScale
from xai_callbacks.sinks.background import BackgroundWriter
from xai_callbacks.sinks.evidence import cluster_pictures, quadrant_pictures
from xai_callbacks.sinks.film import Film, FilmFrame
from xai_callbacks.sinks.pictures import PictureBook
from xai_callbacks.sinks.rankings import most_novel, write_histograms
from xai_callbacks.sinks.scalars import detail_scalars, finite, layout, main_scalars
from xai_callbacks.sinks.trend import Trend

__all__ = ["SummaryWriterLike", "TensorBoardSink"]


class SummaryWriterLike(Protocol):
    """What is used of `torch.utils.tensorboard.SummaryWriter`."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...  # noqa: D102
    def add_image(self, tag: str, img_tensor: np.ndarray, global_step: int, *, dataformats: str) -> None: ...  # noqa: D102
    def add_custom_scalars(self, layout: Mapping[str, Any]) -> None: ...  # noqa: D102
    def add_histogram(self, tag: str, values: np.ndarray, global_step: int) -> None: ...  # noqa: D102
    def flush(self) -> None: ...  # noqa: D102


class TensorBoardSink:
    """Writes records to TensorBoard.

    For each drawn probe a panel under `audit_panel/<number>_<name>`, one image a step, and a filmstrip under
    `audit_filmstrip/<number>_<name>`, which holds the first audit, the latest and those between in one picture:
    TensorBoard's page keeps no more than ten images of a tag. For each novelty score the most novel probes under
    `audit_novelty/<score>/most_novel`, with where they stood in earlier audits, and histograms of the scores of probes
    and of images known to be novel under `audit_novelty/<score>/probes` and `/novel`. For each cue that the probes
    carry in a region, where each of them lies between looked at and used under `audit_cue/<cue>`; kinds of heatmaps
    under `audit_clusters/<class>`. Scalars go under `audit/` and,
    for chance levels and intervals, `audit_detail/`. Pictures are drawn and encoded on a background thread.

    Args:
        writer: The writer.
        probes: The audited probe set.
        max_panels: Most probes drawn; the metrics always cover all.
        scale: Colour scale of all heatmaps; None for the fixed one in logits.
        scalars: Whether to write the scalars as well.
        tag_prefix: What the run's logger puts before every scalar tag, so that the custom scalars page finds them.
        name: What all tags begin with; sinks of several audits in one writer need different ones.

    Raises:
        ConfigurationError: An argument is of a wrong type.

    Example:
        >>> with TensorBoardSink(SummaryWriter("runs/1"), probes) as sink:  # doctest: +SKIP
        ...     sink.write(auditor.audit(model, step=step))
    """

    def __init__(
        self,
        writer: SummaryWriterLike,
        probes: ProbeSet,
        *,
        max_panels: int = 16,
        scale: ColorScale | None = None,
        scalars: bool = True,
        tag_prefix: str = "",
        name: str = "audit",
    ) -> None:
        if not callable(getattr(writer, "add_image", None)):
            raise ConfigurationError(
                f"Expected `writer` to be a SummaryWriter of torch.utils.tensorboard, or like one, but got {writer!r}."
            )
        require_instance("probes", probes, ProbeSet, "a ProbeSet")
        require_integer("max_panels", max_panels, minimum=0, hint="0 draws none.")
        require_instance("scale", scale, (ColorScale, NoneType), "a ColorScale or None")
        require_bool("scalars", scalars)
        require_instance("tag_prefix", tag_prefix, str, "a text")
        require_name("`name`", name)
        self.film = Film()
        self.trend = Trend()
        self._writer = writer
        self._book = PictureBook(probes, max_panels, scale)
        self._scalars = scalars
        self._tag_prefix = tag_prefix
        self._name = name
        self._background = BackgroundWriter()
        # Also when nobody closes the sink, as when a loop raises: run at the latest when the interpreter exits.
        weakref.finalize(self, _finish, self._background, writer)
        self._laid_out: dict[str, Estimate] = {}
        self._explainers: set[str] = set()

    def write(self, record: NoveltyRecord) -> None:
        """Write scalars now and pictures soon; blocks only while two earlier records are still being drawn.

        A record that is no `AuditRecord` has no panels and no filmstrips.
        """
        if self._scalars:
            for tag, value in finite(
                {**main_scalars(record, self._name), **detail_scalars(record, self._name)}
            ).items():
                self._writer.add_scalar(tag, value, record.step)
        write_histograms(self._writer, self._name, {"probes": record.scores, "novel": record.novel_scores}, record.step)
        self._lay_out(record)
        self.trend.add(record.step, record.scores)
        if isinstance(record, AuditRecord):
            drawn = self._book.drawn
            self.film.add(record, drawn, tuple(self._book.caption(record, index) for index in drawn))
        # Film and trend go on changing; what is drawn is how they are now.
        self._background.submit(partial(self._draw, record, self.film.frames, copy.deepcopy(self.trend)))

    def state_dict(self) -> dict[str, Any]:
        """What pictures of several audits remember, as tensors and plain values."""
        return {"film": self.film.state_dict(), "trend": self.trend.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` left off."""
        self.film.load_state_dict(state["film"])
        self.trend.load_state_dict(state["trend"])

    def drain(self) -> list[Exception]:
        """Wait until everything is written; returns what went wrong on the way."""
        self._background.drain()
        errors = self._background.errors()
        try:
            self._writer.flush()
        except Exception as error:  # handed on like those of the background thread
            errors.append(error)
        return errors

    def errors(self) -> list[Exception]:
        """What went wrong since the last call."""
        return self._background.errors()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is None:
            self.close()
        else:
            self.drain()

    def close(self) -> None:
        """Drain; raise the first error if there was one. The writer stays open, it is the user's."""
        errors = self.drain()
        if errors:
            raise errors[0]

    def _lay_out(self, record: NoveltyRecord) -> None:
        """Describe the custom scalars page, again when an audit is the first to have a value of some metric."""
        new = {key: estimate for key, estimate in record.metrics.items() if math.isfinite(estimate.value)}
        if new.keys() - self._laid_out.keys():
            self._laid_out = {**self._laid_out, **new}
            if isinstance(record, AuditRecord):
                # Some explainers answer at some audits only; their charts stay.
                self._explainers |= {name for name, maps in record.maps.items() if maps.about == "question"}
            page = layout(self._laid_out, self._tag_prefix, self._name, explainers=self._explainers)
            self._writer.add_custom_scalars(page)

    def _draw(self, record: NoveltyRecord, frames: tuple[FilmFrame, ...], trend: Trend) -> None:
        if isinstance(record, AuditRecord):
            self._draw_panels(record, frames)
            self._draw_evidence(record)
        for score in record.scores if self._book.drawn else ():
            picture = most_novel(self._book.probes, record, score, trend)
            self._writer.add_image(f"{self._name}_novelty/{score}/most_novel", picture, record.step, dataformats="HWC")

    def _draw_evidence(self, record: AuditRecord) -> None:
        if not self._book.drawn:
            return
        for cue, picture in quadrant_pictures(self._book.probes, record):
            self._writer.add_image(f"{self._name}_cue/{cue}", picture, record.step, dataformats="HWC")
        for kind, picture in cluster_pictures(self._book.probes, record, self._book.scale):
            self._writer.add_image(f"{self._name}_clusters/{kind}", picture, record.step, dataformats="HWC")

    def _draw_panels(self, record: AuditRecord, frames: tuple[FilmFrame, ...]) -> None:
        for position, index in enumerate(self._book.drawn):
            probe = f"{index:03d}_{self._book.probes.names[index]}"
            self._writer.add_image(
                f"{self._name}_panel/{probe}", self._book.panel(record, index), record.step, dataformats="HWC"
            )
            if not frames:
                continue
            strip = self._book.filmstrip(frames, record.headings, position)
            self._writer.add_image(f"{self._name}_filmstrip/{probe}", strip, record.step, dataformats="HWC")


def _finish(background: BackgroundWriter, writer: SummaryWriterLike) -> None:
    background.drain()
    with suppress(Exception):  # nobody is left to be told
        writer.flush()
