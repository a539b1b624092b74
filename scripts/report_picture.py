"""The picture of the report in the README: its first screen, as Chromium shows it, in few colours.

    xai-audit demo --strength 0.1
    xai-audit demo --strength 0.95
    xai-audit report runs/demo/strength-0.1 runs/demo/strength-0.95 --out report.html
    python scripts/report_picture.py report.html docs/pictures/report.png

Needs playwright and a `chromium` on the path.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

SCREEN, SHOWN = (1440, 880), (1080, 660)
COLOURS = 192


def main(argv: Sequence[str] | None = None) -> int:
    """Take the picture; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("report", type=Path, help="file of `write_html`")
    parser.add_argument("picture", type=Path, help="PNG to write")
    args = parser.parse_args(argv)
    browser = shutil.which("chromium")
    if browser is None:
        print("error: there is no chromium on the path. Install it.", file=sys.stderr)
        return 1
    with sync_playwright() as play, play.chromium.launch(executable_path=browser, args=["--no-sandbox"]) as chromium:
        page = chromium.new_page(viewport={"width": SCREEN[0], "height": SCREEN[1]}, color_scheme="light")
        page.goto(args.report.absolute().as_uri())
        screen = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    small = screen.resize(SHOWN, Image.Resampling.LANCZOS)
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    small.quantize(COLOURS, dither=Image.Dither.NONE).save(args.picture, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
