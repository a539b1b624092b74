"""One-class novelty after GradCon: its data protocol, its autoencoder, and a cache of trained nets."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from _small_nets import load
from torch import Tensor
from torch.nn import functional as F

from xai_callbacks.novelty.autoencoder import ConvAutoencoder, dead, reconstruction_error
from xai_callbacks.novelty.gradcon import GradientConstraint

__all__ = ["DATASETS", "EPOCHS", "Split", "read", "split", "trained"]

DATASETS = ("mnist", "fashion_mnist", "cifar10_4000")

# About 850 steps for each net of the first two; of CIFAR-10 only 240 training images a class are at hand.
EPOCHS = {"mnist": 10, "fashion_mnist": 6, "cifar10_4000": 100}

STRENGTH = 0.03
BATCH = 64


class Split(NamedTuple):
    """Images `(N, C, 28, 28)` in [0, 1]; `known` and `novel` are equally many and never seen in training."""

    train: Tensor
    validation: Tensor
    known: Tensor
    novel: Tensor


class Pool(NamedTuple):
    """Pixels, labels, and which images are officially for testing; None where folds are drawn instead."""

    pixels: Tensor
    labels: Tensor
    tested: Tensor | None


def read(folder: Path, dataset: str) -> Pool:
    """All images of a data set, training images first."""
    if dataset == "cifar10_4000":
        return _read_cifar(folder / dataset / "train_first4000.npz")
    parts = [load(folder / dataset, name) for name in ("train", "t10k")]
    pixels, labels = torch.cat([part.pixels for part in parts]), torch.cat([part.labels for part in parts])
    tested = torch.arange(len(labels)) >= len(parts[0].labels)
    return Pool(pixels, labels, tested if dataset == "mnist" else None)


def _read_cifar(path: Path) -> Pool:
    """Resized to 28 x 28 with antialiasing, as published."""
    with np.load(path) as arrays:
        pixels, labels = (torch.from_numpy(arrays[name]) for name in ("x", "y"))
    scaled = pixels.permute(0, 3, 1, 2).float() / 255
    resized = F.interpolate(scaled, (28, 28), mode="bilinear", antialias=True)
    return Pool(resized.clamp(0, 1), labels.long(), None)


def split(pool: Pool, inlier: int, seed: int) -> Split:
    """GradCon's protocol: a tenth of MNIST's training digits validates; other data come in five folds of each class.

    Of the folds three train, one validates and one tests. Test images of the inlier class meet as many others, drawn
    from the other classes at random.
    """
    generator = torch.Generator().manual_seed(10 * seed + inlier)
    own = pool.labels == inlier
    if pool.tested is None:
        fold = _folds(pool.labels, generator)
        training, validation = (torch.where(own & chosen)[0] for chosen in (fold < 3, fold == 3))
        testable = fold == 4
    else:
        shuffled = _shuffled(own & ~pool.tested, generator)
        validation, training = shuffled.tensor_split([len(shuffled) // 10])
        testable = pool.tested
    known = torch.where(testable & own)[0]
    novel = _shuffled(testable & ~own, generator)[: len(known)]
    return Split(*(pool.pixels[chosen] for chosen in (training, validation, known, novel)))


def _shuffled(chosen: Tensor, generator: torch.Generator) -> Tensor:
    """Places of the images chosen, in random order."""
    places = torch.where(chosen)[0]
    return places[torch.randperm(len(places), generator=generator)]


def _folds(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Fold 0 to 4 of every image, the same share of each class in each."""
    fold = torch.empty_like(labels)
    for label in torch.unique(labels):
        places = _shuffled(labels == label, generator)
        fold[places] = torch.arange(len(places)) % 5
    return fold


def trained(
    cache: Path, name: str, data: Split, *, epochs: int, seed: int, constrained: bool
) -> tuple[ConvAutoencoder, dict[str, Tensor]]:
    """An autoencoder of the training images and, if constrained, its reference gradients; from the cache if there.

    Adam at 1e-3, binary cross-entropy of the logits, the last epoch is kept: nothing is chosen.
    """
    file = cache / f"{name}_{'constrained' if constrained else 'plain'}_{epochs}.pt"
    model = ConvAutoencoder(data.train.shape[1])
    if not file.exists():
        torch.manual_seed(seed)
        model = ConvAutoencoder(data.train.shape[1])
        constraint = GradientConstraint(model.decoder, STRENGTH) if constrained else None
        _train(model, constraint, data.train, epochs)
        with torch.no_grad():
            if dead(model.reconstruct(data.validation), data.validation):
                print(f"  {file.stem}: the output has died")
        references = {} if constraint is None else constraint.references
        cache.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".part")  # a run that is stopped leaves no half a file behind
        torch.save({"model": model.state_dict(), "references": references}, partial)
        partial.replace(file)
    kept = torch.load(file, weights_only=True)
    model.load_state_dict(kept["model"])
    return model.eval(), kept["references"]


def _train(model: ConvAutoencoder, constraint: GradientConstraint | None, images: Tensor, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(images)), BATCH):
            optimizer.zero_grad()
            loss = reconstruction_error(model(images[batch]), images[batch], "bce").mean()
            if constraint is None:
                loss.backward()  # type: ignore[no-untyped-call]
            else:
                (loss + constraint(loss)).backward()
                constraint.update()
            optimizer.step()
