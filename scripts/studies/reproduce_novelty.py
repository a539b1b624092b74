"""One-class novelty by gradients on MNIST, Fashion-MNIST and a little CIFAR-10, beside the published means.

For each class, data set and seed, autoencoders learn images of that class alone, without and with GradCon's constraint,
and every score must tell test images of the class from equally many of the others. No score sees an image of another
class before: what learns, learns from training and validation images of the one class; nothing is tuned and no epoch is
chosen. See `_one_class` for the data protocol and the training, one recipe for all: binary cross-entropy of the logits,
because the published squared error of a sigmoid dies on most digits.

    python scripts/studies/reproduce_novelty.py --json docs/results/novelty.json

Takes about three hours on one CPU thread, less than a minute once the cache is full. Nets and figures are cached by
class, so that a run may be stopped and continued, or several may share the work with `--datasets` or `--seeds`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _one_class import DATASETS, EPOCHS, Pool, Split, read, split, trained
from _provenance import provenance, write_json

from xai_callbacks.access import Subject, undisturbed
from xai_callbacks.gradients import PerSampleGradients
from xai_callbacks.metrics import novelty_auroc
from xai_callbacks.novelty import ConvAutoencoder, reconstruction_error
from xai_callbacks.novelty.fisher import FisherNovelty, Whitener
from xai_callbacks.novelty.gradcon import GradConScore, GradientConstraint

CHUNK = 100

# Means over ten classes. The papers could not be read: of the first the means are in its abstract, of the second they
# come from memory and a third party's rerun, which found .616 and .622 on CIFAR-10.
PUBLISHED = {
    "gradients, ICIP 2020 (arXiv 2008.06094)": {"mnist": 0.953, "fashion_mnist": 0.918, "cifar10": 0.582},
    "GradCon, ECCV 2020 (arXiv 2007.09507), not verified": {"mnist": 0.973, "fashion_mnist": 0.934, "cifar10": 0.664},
}

Figures = dict[str, float]
Scores = dict[str, tuple[Tensor, Tensor]]


def scores_of_plain(model: ConvAutoencoder, data: Split) -> Scores:
    """Scores of known and novel images by an autoencoder that was trained without a constraint."""
    familiar = torch.cat([data.train, data.validation])
    subject = Subject(model)
    measure = PerSampleGradients(model, parameters=["*.weight"])

    def gradients(images: Tensor) -> Tensor:
        return torch.cat(list(FisherNovelty().features(subject, images).values()), dim=1)

    def norm(images: Tensor) -> Tensor:
        reading = measure(images, lambda outputs, given: reconstruction_error(_tensor(outputs), given, "bce"))
        return torch.stack(list(reading.squared_norms.values())).sum(dim=0)

    def error(images: Tensor) -> Tensor:
        return reconstruction_error(model(images), images).double()

    def code(images: Tensor) -> Tensor:
        return _tensor(model.encoder(images)).flatten(1).double()

    mean = familiar.mean()
    of_gradients, of_code, of_pixels = (_each(one, familiar) for one in (gradients, code, _pixels))
    far = {
        "gradient/fisher": (gradients, Whitener(of_gradients)),
        "latent/mahalanobis": (code, Whitener(of_code)),
        "pixels/mahalanobis": (_pixels, Whitener(of_pixels)),
    }
    found = {
        "reconstruction": _both(error, data),
        "gradient/norm": _both(norm, data),
        "pixels/mean": _both(lambda images: (images.flatten(1).mean(dim=1) - mean).abs(), data),
    }
    rows = {name: _both(look, data) for name, (look, _) in far.items()}
    found |= {name: _distances(far[name][1], pair) for name, pair in rows.items()}
    together = Whitener(torch.cat([of_gradients, of_code], dim=1))
    pairs = zip(rows["gradient/fisher"], rows["latent/mahalanobis"], strict=True)
    known, novel = (torch.cat(pair, dim=1) for pair in pairs)
    return found | {"combined/fisher_latent": _distances(together, (known, novel))}


def scores_of_constrained(model: ConvAutoencoder, references: dict[str, Tensor], data: Split) -> Scores:
    """Scores of known and novel images by an autoencoder that was trained with GradCon's constraint."""
    model.constraint = GradientConstraint(model.decoder)
    for name, mean in model.constraint.references.items():
        mean.copy_(references[name])
    score = GradConScore("constraint", loss="bce")
    subject = Subject(model)
    known, novel = _both(lambda images: torch.stack(score.terms(subject, images), dim=1), data)
    return {
        "reconstruction_constrained": (known[:, 0], novel[:, 0]),
        "gradient/alignment": (-known[:, 1], -novel[:, 1]),
        "combined/gradcon": tuple(terms[:, 0] - score.beta * terms[:, 1] for terms in (known, novel)),  # type: ignore[dict-item]
    }


def _pixels(images: Tensor) -> Tensor:
    return images.flatten(1).double()


def _tensor(outputs: object) -> Tensor:
    assert isinstance(outputs, Tensor)  # narrows the type
    return outputs


def _each(look: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([look(chunk).detach() for chunk in torch.split(images, CHUNK)])


def _both(look: Callable[[Tensor], Tensor], data: Split) -> tuple[Tensor, Tensor]:
    return _each(look, data.known), _each(look, data.novel)


def _distances(familiar: Whitener, rows: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return familiar.distance(rows[0]), familiar.distance(rows[1])


def one_class(pool: Pool, dataset: str, inlier: int, seed: int, options: argparse.Namespace) -> Figures:
    """AUROC by score; from the cache if there."""
    epochs = options.epochs or EPOCHS[dataset]
    name = f"{dataset}_{seed}_{inlier}"
    file = options.cache / f"{name}_{epochs}.json"
    if not file.exists():
        begin = time.perf_counter()
        data = Split(*(images[: options.images] for images in split(pool, inlier, seed)))
        found: Scores = {}
        for constrained in (False, True):
            # Each net starts from weights of its own.
            model, references = trained(
                options.cache, name, data, epochs=epochs, seed=100 * seed + inlier, constrained=constrained
            )
            with undisturbed(model):
                found |= scores_of_constrained(model, references, data) if constrained else scores_of_plain(model, data)
        figures = {score: novelty_auroc(known, novel) for score, (known, novel) in found.items()}
        file.write_text(json.dumps(figures))
        best = figures["gradient/fisher"]
        print(f"  {name}: gradient/fisher {best:.3f}, {time.perf_counter() - begin:.0f} s", flush=True)
    kept: Figures = json.loads(file.read_text())
    return kept


def one_dataset(dataset: str, options: argparse.Namespace) -> dict[str, Any]:
    """Figures by score, as they are kept."""
    pool = read(options.data, dataset)
    by_seed = {
        seed: {inlier: one_class(pool, dataset, inlier, seed, options) for inlier in options.classes}
        for seed in options.seeds
    }
    scores = by_seed[options.seeds[0]][options.classes[0]]
    return {score: _row(score, dataset, by_seed, options) for score in scores}


def _row(
    score: str, dataset: str, by_seed: dict[int, dict[int, Figures]], options: argparse.Namespace
) -> dict[str, Any]:
    means = [statistics.mean(figures[score] for figures in classes.values()) for classes in by_seed.values()]
    return {
        "per_class": {
            str(inlier): round(statistics.mean(classes[inlier][score] for classes in by_seed.values()), 4)
            for inlier in options.classes
        },
        "mean": round(statistics.mean(means), 4),
        "mean_of_each_seed": [round(mean, 4) for mean in means],
        "seeds": len(by_seed),
        "epochs": options.epochs or EPOCHS[dataset],
    }


def table(dataset: str, rows: dict[str, Any]) -> Table:
    """AUROC by score and class, best mean first, published means below."""
    seeds = next(iter(rows.values()))["seeds"]
    view = Table(title=f"{dataset}: AUROC by inlier class, mean over {seeds} seed(s); chance .5")
    classes = list(next(iter(rows.values()))["per_class"])
    for column in ("score", *classes, "mean"):
        view.add_column(column, justify="left" if column == "score" else "right", no_wrap=True)
    for score, row in sorted(rows.items(), key=lambda item: -item[1]["mean"]):
        view.add_row(score, *(f"{row['per_class'][inlier]:.3f}" for inlier in classes), f"{row['mean']:.4f}")
    view.add_section()
    for source, means in PUBLISHED.items():
        mean = means["cifar10" if dataset == "cifar10_4000" else dataset]
        view.add_row(source, *[""] * len(classes), f"{mean:.3f}")
    return view


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print tables and keep the figures."""
    options = _options(arguments)
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for dataset in options.datasets:
        results[dataset] = one_dataset(dataset, options)
        Console(width=160).print(table(dataset, results[dataset]))
    if options.json is not None:
        results |= {"published": PUBLISHED, "provenance": provenance("numpy")}
        write_json(options.json, results)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default, help="folder with the data sets")
    parser.add_argument("--cache", type=Path, default=Path("novelty_cache"), help="folder for nets and figures")
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--classes", nargs="+", type=int, default=list(range(10)))
    parser.add_argument("--epochs", type=int, help="instead of the data set's own number")
    parser.add_argument("--images", type=int, help="at most so many images for each purpose, to try the script")
    parser.add_argument("--json", type=Path, help="file for the figures")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
