"""The tables of docs/architectures.md, made from the kept results, so that no figure is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["PAGE", "RIGHT", "filled", "sound", "write_page"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"
_LIBRARIES = {"timm": "timm", "transformers": "Hugging Face transformers"}
_KINDS = ("peak", "stands_out")

RIGHT = 0.75
"""Share of images from which on a net counts as right."""


def write_page(result: Mapping[str, Any], path: Path = PAGE) -> None:
    """Rewrite the tables of a page."""
    path.write_text(filled(path.read_text(encoding="utf-8"), result), encoding="utf-8")


def filled(text: str, result: Mapping[str, Any]) -> str:
    """A page with its tables made anew; those without markers are left out."""
    made = {"summary": _summary(result), **{name: _table(result[name]) for name in _LIBRARIES}}
    for name, table in made.items():
        begin, end = f"<!-- {name} table -->", f"<!-- end of {name} table -->"
        if begin in text:
            before, after = text.partition(begin)[0], text.partition(end)[2]
            text = f"{before}{begin}\n{table}\n{end}{after}"
    return text


def sound(entry: Mapping[str, Any]) -> bool:
    """Whether the layer of an architecture is verified, or its search refuses with advice that works."""
    return bool(entry["verified"] or (entry["refused"] and entry["advice_works"]))


def _summary(result: Mapping[str, Any]) -> str:
    """One row a library: counts."""
    heads = ["", "nets", "layer verified", "refused, of those the advice works", "found, but not verified"]
    heads += ["learned the square", "of those the map peaks right", "stands out right"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for library, name in _LIBRARIES.items():
        entries = list(result[library].values())
        refused = [each for each in entries if each["refused"]]
        cells = [
            str(len(entries)),
            str(sum(each["verified"] for each in entries)),
            f"{len(refused)}, {sum(bool(each['advice_works']) for each in refused)}",
            str(sum(not each["verified"] and not each["refused"] for each in entries)),
        ]
        learned = [found for each in entries if (found := each["quarter"]) and found["learned"]]
        cells += [str(len(learned)), *(str(sum(found[key] >= RIGHT for found in learned)) for key in _KINDS)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    versions = result["versions"]
    note = (
        f"`scripts/studies/architectures.py`, {result['date']}, {result['machine']}, torch {versions['torch']}, timm "
        f"{versions['timm']}, transformers {versions['transformers']}."
    )
    return "\n".join([*lines, "", f"*{note}*"])


def _table(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """One row a net."""
    heads = ["net", "layer of the default heatmap", "cells at pixels", "verified"]
    heads += ["peaks, stands out right of 8"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, entry in entries.items():
        lines.append(f"| `{name}` | " + " | ".join([*_where(entry), _right(entry["quarter"])]) + " |")
    return "\n".join(lines)


def _where(entry: Mapping[str, Any]) -> Sequence[str]:
    if entry["refused"]:
        advice = ", ".join(f"`{each}`" for each in entry["advice"])
        works = "advice works" if entry["advice_works"] else "**advice fails**"
        return f"refused; advised: {advice}", f"at {entry['size']}", works
    height, width = entry["grid"]
    verified = "yes" if entry["verified"] else "not yet"
    return f"`{entry['layer']}`", f"{height} x {width} at {entry['size']}", verified


def _right(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "not trained"
    if not found["learned"]:
        return f"not learned, {100 * found['accuracy']:.0f} % told right"
    return ", ".join(str(round(8 * found[key])) for key in _KINDS)
