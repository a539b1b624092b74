"""Records, pictures and histories for the tests of sinks, and a reader of files of an offline run of W&B."""

from __future__ import annotations

import io
import json
import struct
import time

import numpy as np
import torch
from PIL import Image

from xai_callbacks.gallery import Picture
from xai_callbacks.history import History
from xai_callbacks.record import AuditRecord, Estimate, Finding, Key

FULL = Estimate(0.5, 0.25, 0.75, 0.1, 40, 3)
PLAIN = Estimate(0.5, None, None, None, 6, 0)
ALARM = Finding(
    key="alarm/cue/patch", state="alarm", value=2.0, about="cue/patch/effect", threshold=0.03, estimate=FULL,
    sentence="The cue patch is *used* <b>since</b> epoch 3.",
)  # fmt: skip
CALM = Finding(
    key="expectation/0", state="pass", value=0.0, sentence="accuracy > 0.2.", about="accuracy", threshold=0.2
)


def a_record(step=1, **changes):
    given = {
        "metrics": {"gradcam/why/relevance_mass/core": FULL, "accuracy": PLAIN, "cue/patch/effect": FULL},
        "keys": (
            Key("accuracy", "share of probes that are right"),
            Key("cue/*/effect", "effect of the cue"),
            Key("gradcam/why/relevance_mass/core", "share of the heat on the object"),
        ),
        "explainers": {"gradcam": "GradCAM()"},
        "questions": ("why",),
        "scores": {"gradnorm": torch.linspace(0, 1, 6, dtype=torch.float64)},
        "findings": (CALM, ALARM),
    }
    return AuditRecord(step=step, epoch=step, **{**given, **changes})


def a_picture(tag="audit_panel/003_cat", step=1, *, size=(24, 32), colour=None, caption="a cat"):
    """Smooth colours with some noise, smaller as a JPEG; or one colour, smaller as a PNG."""
    height, width = size
    red, green = np.mgrid[0:height, 0:width].astype(np.float64)
    smooth = np.stack([red * 255 / height, green * 255 / width, np.full(size, 40.0 + step % 100)], axis=-1)
    smooth = (smooth + np.random.default_rng(step).normal(0, 4, smooth.shape)).clip(0, 255)
    pixels = smooth if colour is None else np.broadcast_to(colour, (height, width, 3))
    return Picture(tag, pixels.astype(np.uint8), step, caption)


def a_history(*records):
    history = History()
    for record in records:
        history.append(record)
    return history


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def alike(data, picture):
    """Whether a file shows a picture: a JPEG of high quality is a few grey levels off."""
    shown = decoded(data)
    return shown.shape == picture.pixels.shape and np.abs(shown.astype(int) - picture.pixels).mean() < 4


def wandb_rows(path):
    """Rows that a finished run of W&B has logged; its process may still be writing the last of them."""
    until, records, rows = time.monotonic() + 60, [], []
    while not any(each.HasField("exit") for each in records):
        assert time.monotonic() < until
        time.sleep(0.01)
        records = list(_wandb_records(path.read_bytes()))
    for record in records:
        if record.HasField("history"):
            rows.append({})
            for item in record.history.item:
                *names, last = item.nested_key
                node = rows[-1]
                for name in names:
                    node = node.setdefault(name, {})
                node[last] = json.loads(item.value_json)
    return rows


def _wandb_records(data):
    """The protocol buffers in a log as LevelDB has it: blocks of 32 kB, in which parts have a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    place, parts = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # the rest of a block is padding
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if place <= len(data) and kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""
