"""`Baselines`: what heatmaps are read beside, so that a large share in a region is not taken for evidence."""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch

from xai_callbacks.errors import in_words
from xai_callbacks.history import History
from xai_callbacks.interventions.pixels import PixelScale
from xai_callbacks.measures.base import Context, Measure, ModelAccess, keys_of_maps
from xai_callbacks.measures.localization import enlarged, regions_on
from xai_callbacks.metrics.localization import area_fraction, lift_chance, relevance_lift, relevance_mass
from xai_callbacks.metrics.nulls import permuted_mass, shift_p, signed_share, sobel_magnitude
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import AuditRecord, Estimate, Key, MapSet, Measured, PerProbe

_COPIES = 3
_edges_of: WeakKeyDictionary[ProbeSet, dict[str, PerProbe]] = WeakKeyDictionary()


class Baselines(Measure):
    """Judges heatmaps by nulls, by an edge filter, and by copies of the model with random weights.

    | key | meaning | range | chance |
    |---|---|---|---|
    | `<map>/shift_p/<region>` | rank of the mass in the region among all shifts of the map | (0, 1] | .5 |
    | `<map>/permuted_mass/<region>` | mass in the region of the other probes: a habit of place | [0, 1] | area |
    | `<map>/signed_share/<region>` | evidence for minus against inside the region, over all of it | [-1, 1] | 0 |
    | `<map>/relevance_lift/<region>/reference` | mean lift by three models with random weights | [0, inf) | 1 |
    | `edges/relevance_mass/<region>` | mass of an edge filter, which has learned nothing | [0, 1] | area |

    Read `shift_p` with `permuted_mass`: maps may favour a place whatever the image. The interval of `reference` goes
    from the lowest to the highest copy; it is taken once a run, of explainers that need no forward pass of their own.
    Cost: a Fourier transform a map and region; at one audit three forward passes and memory for one more model.
    """

    def keys(self, context: Context) -> Sequence[Key]:
        """All that there may be; some explainers have no reference."""
        found: list[Key] = []
        for region in context.probes.masks:
            PixelScale.of(context.probes)
            found.append(Key(f"edges/relevance_mass/{region}", f"share of the edges in {region}", 0.0, 1.0, "area"))
            for name in context.maps:
                found += [
                    Key(f"{name}/shift_p/{region}", f"shifts with as much relevance in {region}", 0.0, 1.0, "0.5"),
                    Key(f"{name}/permuted_mass/{region}", f"relevance in the {region} of others", 0.0, 1.0, "area"),
                    Key(f"{name}/signed_share/{region}", f"net evidence in {region}", -1.0, 1.0, "0"),
                    Key(_reference(name, region), f"lift of {region} by random weights", 0.0, None, "1", of="nothing"),
                ]
        return found

    def measure(self, record: AuditRecord, past: History, context: Context) -> Measured:
        """Judge all heatmaps of the record; take the references if no audit before has them."""
        probes = context.probes
        if not probes.masks:
            return {}
        if probes not in _edges_of:
            _edges_of[probes] = _edges(probes)
        found: dict[str, PerProbe | Estimate] = {**_edges_of[probes]}
        for name, given in record.maps.items():
            found |= _nulls(given, keys_of_maps(record, name), context)
        keys = [_reference(name, region) for name in context.maps for region in probes.masks]
        known = {key: earlier[-1][1] for key in keys if (earlier := past.estimates(key))}
        if not known and context.model is not None and record.maps:
            try:
                known = _references(record, context.model, probes)
            except Exception as error:  # told; the other baselines must not be lost for it
                context.notes.append(f"The comparison with random weights failed and was left out. {in_words(error)}")
        return found | known


def _reference(name: str, region: str) -> str:
    return f"{name}/relevance_lift/{region}/reference"


def _edges(probes: ProbeSet) -> dict[str, PerProbe]:
    scale = PixelScale.of(probes)
    found: dict[str, PerProbe] = {}
    for region, masks in probes.masks.items():
        # Image by image: sums over masks take eight bytes a pixel.
        pairs = zip(torch.split(probes.images, 1), torch.split(masks, 1), strict=True)
        shares = [relevance_mass(sobel_magnitude(scale.displayed(image)), mask) for image, mask in pairs]
        areas = torch.cat([area_fraction(mask) for mask in torch.split(masks, 1)])
        found[f"edges/relevance_mass/{region}"] = PerProbe(torch.cat(shares), areas)
    return found


def _nulls(given: MapSet, begins: Sequence[str], context: Context) -> dict[str, PerProbe]:
    found, peaks = {}, torch.tensor(given.peaks, dtype=torch.float64)[:, None]
    for region, weights in regions_on(context.probes, given.heatmaps).items():
        area, mask = area_fraction(weights), context.probes.masks[region]
        permuted = permuted_mass(given.heatmaps.clamp(min=0), weights, reference=peaks)
        signed = signed_share(given.heatmaps, weights, reference=peaks)
        shifted = enlarged(shift_p, given.heatmaps, mask, peaks, context.chunk_size)
        for row, key in enumerate(begins):
            found[f"{key}/shift_p/{region}"] = PerProbe(shifted[row], lift_chance(weights) / 2)
            found[f"{key}/permuted_mass/{region}"] = PerProbe(permuted[row], area)
            found[f"{key}/signed_share/{region}"] = PerProbe(signed[row], area * 0)
    return found


def _references(record: AuditRecord, model: ModelAccess, probes: ProbeSet) -> dict[str, Estimate]:
    lifts: dict[str, list[float]] = {}
    for seed in range(_COPIES):
        for name, maps in model.randomised(seed).items():
            for region, weights in regions_on(probes, maps).items():
                values = relevance_lift(maps.clamp(min=0), weights).nanmean(dim=1)
                for key, value in zip(keys_of_maps(record, name), values.tolist(), strict=True):
                    lifts.setdefault(_reference(key, region), []).append(value)
    complete = {key: values for key, values in lifts.items() if len(values) == _COPIES}
    return {key: Estimate(sum(each) / _COPIES, min(each), max(each), 1.0, _COPIES) for key, each in complete.items()}
