"""One page of all explainers on photos, and of the examples of the papers they come from.

    python scripts/gallery.py gallery.html

Needs photos and weights of `../shared/data`, see `scripts/studies/_photos.py`; the page holds the photos, so keep it to
yourself. Takes some ten minutes on one CPU thread; `--photos 3` is faster.
"""

from __future__ import annotations

import argparse
import base64
import html
import inspect
import sys
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent / "studies"))
from _gallery_rows import Row, Tile, answer, audit, circled, contrasts, fixated, half_filled, heated, hindered, quality
from _imagenet_nets import deit_tiny, mobilenet_v2
from _photos import DATA, imagenet_probes
from evaluate_explainers import chosen

from xai_callbacks import Gradient, ProbeSet, Why
from xai_callbacks.errors import ConfigurationError

SHOWN = (
    "129_spoonbill", "292_tiger", "386_African_elephant", "340_zebra", "479_car_wheel", "515_cowboy_hat", "963_pizza",
    "466_bullet_train",
)  # fmt: skip


def every_explainer(model: nn.Module, probes: ProbeSet) -> Iterable[Row]:
    """The photos with the answers of a net, and a row for each explainer that it allows."""
    record = audit(model, probes, [Why()], Gradient())
    shown = [Tile(each.numpy(), answer(record, index)) for index, each in enumerate(probes.pixels)]
    yield Row("photo", "with the answer", shown)
    for explainer in chosen(None):
        try:
            record = audit(model, probes, [Why()], explainer)
            maps = record.maps[explainer.name].heatmaps[0]
        except (ConfigurationError, KeyError) as error:
            print(f"{explainer.name}: {error}", flush=True)
            continue
        said = (inspect.getdoc(type(explainer)) or "").partition("\n\n")[0]
        yield Row(explainer.name, said, [Tile(heated(probes, index, each)) for index, each in enumerate(maps)])
        print(explainer.name, flush=True)


STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1500px; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { margin-top: 2.4rem; font-size: 1.2rem; }
p { max-width: 46rem; } .grid { overflow-x: auto; }
table { border-collapse: collapse; }
th { text-align: left; font-weight: 400; vertical-align: top; padding-right: 1rem; }
th.what { min-width: 15rem; max-width: 15rem; } th b { display: block; }
td { padding: 0 6px 10px 0; vertical-align: top; }
img { display: block; border-radius: 3px; }
small { display: block; width: 150px; line-height: 1.3; padding-top: 3px; opacity: .85; }
"""


def page(sections: Sequence[tuple[str, str, Sequence[Row]]]) -> str:
    """The page, which needs nothing beside itself."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>Explainers on photos</title><style>{STYLE}</style><h1>Explainers on photos</h1>",
        "<p>Orange to red speaks for what is asked, blue to violet against it. Each tile has a scale of its own: "
        "compare places, not strengths.</p>",
    ]
    for title, words, rows in sections:
        parts.append(f"<h2>{html.escape(title)}</h2><p>{html.escape(words)}</p><div class=grid><table>")
        for row in rows:
            cells = "".join(f"<td>{picture(tile, row.name)}</td>" for tile in row.tiles)
            head = f"<b>{html.escape(row.name)}</b>{html.escape(row.about)}"
            parts.append(f"<tr><th class=what>{head}</th>{cells}</tr>")
        parts.append("</table></div>")
    return "\n".join(parts)


def picture(tile: Tile, name: str) -> str:
    """An image with its words."""
    data = BytesIO()
    Image.fromarray(tile.pixels).save(data, "WEBP", quality=82)
    source = base64.b64encode(data.getvalue()).decode()
    words, alt = html.escape(tile.words), html.escape(f"{name} {tile.words}")
    image = f"<img loading=lazy height={tile.height} alt='{alt}' src='data:image/webp;base64,{source}'>"
    return f"{image}<small>{words}</small>"


def main(arguments: list[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the HTML file to write")
    parser.add_argument("--photos", type=int, default=len(SHOWN), help="number of photos")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    net, transformer = mobilenet_v2(DATA / "weights").eval(), deit_tiny(DATA / "weights")
    photos = imagenet_probes()
    probes = photos.select([photos.names.index(name) for name in SHOWN[: given.photos]])
    papers = [
        contrasts(net, "spoonbill", "spoonbill", ["flamingo", "hog"]),
        contrasts(net, "bull_mastiff_boxer_cat", "bull_mastiff", ["boxer", "jay"]),
        quality(),
    ]
    sections = [
        ("Contrasts", "Why P, rather than Q? Why not P with 100 % confidence? Why 58, rather than 75?", papers),
        ("Undesirable pixels", "What keeps the net from the class of the object?", list(hindered(net))),
        ("Half of a photo", "Does the answer depend on what hides the other half?", [half_filled(net)]),
        ("Implicit saliency", "Do nets look where people look?", list(fixated(net))),
        ("Found regions", "Circle what the classifier found.", [circled()]),
        ("MobileNetV2", "Why this answer?", list(every_explainer(net, probes))),
        ("DeiT-tiny", "Why this answer, of a vision transformer?", list(every_explainer(transformer, probes))),
    ]
    given.out.write_text(page(sections), encoding="utf-8")


if __name__ == "__main__":
    main()
