"""`xai-audit probes build`, `inspect` and `verify`."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from xai_callbacks.cli.named import named
from xai_callbacks.cli.output import OK, console, say, table, write_json
from xai_callbacks.errors import ConfigurationError, in_words

if TYPE_CHECKING:
    from xai_callbacks.probes import ProbeSet

Counts = list[tuple[str, int]]  # names may come twice


def build_arguments(parser: ArgumentParser) -> None:
    """Add the options of `build`."""
    parser.add_argument(
        "folder", nargs="?", type=str, metavar="FOLDER", help="Folder of images, with probes.csv or a folder a class."
    )
    parser.add_argument("--dataset", type=str, help="Or a dataset, its class or a factory, as package.module:name.")
    parser.add_argument("--dataset-args", type=dict[str, Any], default={}, help="What that is called with.")
    parser.add_argument("--out", type=str, default="probes.safetensors", help="File to write.")
    parser.add_argument("--per-class", type=int, default=4, help="Probes of each class, of a dataset.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of that draw.")
    parser.add_argument("--fields", type=dict[str, Any], help="Where things are in an item, of a dataset.")
    parser.add_argument("--size", type=int | tuple[int, int], default=224, help="Pixels, or [H, W], of a folder.")
    parser.add_argument("--resize", type=int | None, help="Shorter side before the crop, of a folder.")
    parser.add_argument("--mean", type=list[float] | None, help="Normalisation, one value a channel.")
    parser.add_argument("--std", type=list[float] | None, help="Likewise.")
    parser.add_argument("--class-names", type=list[str] | None, help="Names of the classes.")


def build(args: Any) -> int:
    """Build a probe set from a folder, or from a dataset, and save it as one file.

    Examples:
      xai-audit probes build photos --size 224 --mean [0.485,0.456,0.406] --std [0.229,0.224,0.225]
      xai-audit probes build --dataset torchvision.datasets.CIFAR10 --dataset-args '{root: data, train: false}'
      xai-audit probes build --dataset my_project.data:validation_set --per-class 8 --out probes.safetensors
    """
    from xai_callbacks.probes import ProbeSet

    if (args.folder is None) == (args.dataset is None):
        raise ConfigurationError("Expected a folder or --dataset, one of them. See xai-audit probes build --help.")
    facts = {name: getattr(args, name) for name in ("mean", "std", "class_names")}
    if args.folder is not None:
        probes = ProbeSet.from_folder(args.folder, size=args.size, resize=args.resize, **facts)
    else:
        dataset = named(args.dataset)
        try:
            dataset = dataset(**args.dataset_args) if callable(dataset) else dataset
        except (Exception, SystemExit) as error:  # of a class or function of the user
            raise ConfigurationError(
                f"Expected {args.dataset!r} to make a dataset, but got {in_words(error)} Pass its arguments as "
                "--dataset-args."
            ) from error
        probes = ProbeSet.from_dataset(dataset, args.per_class, seed=args.seed, fields=args.fields, **facts)
    probes.save(args.out)
    return _show(args, probes, args.out)


def inspect_arguments(parser: ArgumentParser) -> None:
    """Add the options of `inspect`."""
    parser.add_argument("probes", type=str, metavar="PROBES", help="File of a probe set.")
    parser.add_argument("--png", type=str, help="Also write a contact sheet, to this file.")


def inspect(args: Any) -> int:
    """Show what is in a probe set: facts, counts by class and group, regions.

    Examples:
      xai-audit probes inspect probes.safetensors --png probes.png
    """
    from xai_callbacks.probes import ProbeSet

    probes = ProbeSet.load(args.probes)
    if args.png:
        _contact_sheet(probes, args.png)
    return _show(args, probes, args.probes)


def verify_arguments(parser: ArgumentParser) -> None:
    """Add the options of `verify`."""
    parser.add_argument("probes", nargs="+", type=str, metavar="PROBES", help="Files of probe sets.")


def verify(args: Any) -> int:
    """Read probe sets, and check that their content has the fingerprint they were saved with; exit code 3 if not.

    Examples:
      xai-audit probes verify probes.safetensors
    """
    from xai_callbacks.probes import ProbeSet

    found = {path: ProbeSet.load(path).fingerprint for path in args.probes}
    if args.json:
        write_json(found)
    for path, fingerprint in () if args.json else found.items():
        say(console(), f"{path}: sound, fingerprint {fingerprint}")
    return OK


def _show(args: Any, probes: "ProbeSet", path: str) -> int:
    regions = [(name, int(mask.flatten(1).any(1).sum())) for name, mask in probes.masks.items()]
    facts = {
        "file": path,
        "probes": len(probes),
        "images": " x ".join(map(str, probes.images.shape[1:])),
        "task": probes.task.kind,
        "fingerprint": probes.fingerprint,
        "mean": probes.mean,
        "std": probes.std,
    }
    counts = {"class": _by_class(probes), "group": _by_group(probes), "region": regions}
    if args.json:
        write_json({**facts, "by": counts})
        return OK
    out = console()
    out.print(table("", "fact", "value", rows=[(name, value) for name, value in facts.items() if value is not None]))
    for kind, found in counts.items():
        if found:
            out.print(table("", kind, "probes", rows=found))
    return OK


def _by_class(probes: "ProbeSet") -> Counts:
    """Number of probes of each class, or that have each label."""
    if probes.labels is None:
        return []
    counts = probes.labels.bincount() if probes.labels.ndim == 1 else (probes.labels == 1).sum(0)
    return [(probes.class_name(k), count) for k, count in enumerate(counts.tolist()) if count]


def _by_group(probes: "ProbeSet") -> Counts:
    """Number of probes of each group."""
    groups = [] if probes.groups is None else probes.groups.tolist()
    named = {-1: "unknown", **dict(enumerate(probes.group_names or ()))}
    return [(named.get(group, str(group)), count) for group, count in sorted(Counter(groups).items())]


def _contact_sheet(probes: "ProbeSet", path: str) -> None:
    """Draw all probes with their names, truth and regions on one page."""
    from PIL import Image

    from xai_callbacks.gallery.heat import color_scale
    from xai_callbacks.gallery.words import truth
    from xai_callbacks.render import Cell, Line, Row, render_page

    cells = [
        Cell(
            probes.pixels[index].numpy(),
            f"{name}\n{truth(probes, index)}",
            regions={region: mask[index].numpy() for region, mask in probes.masks.items()},
        )
        for index, name in enumerate(probes.names)
    ]
    row, line = Row(cells, size=168, lines=4), Line(f"{len(probes)} probes, fingerprint {probes.fingerprint}")
    page = render_page([row], title=Path(path).stem, lines=[line], scale=color_scale(probes), width=960)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(page).save(path, "PNG")
