import copy
import gc
import json
import math
import weakref
from dataclasses import replace

import pytest
import torch
from scipy import stats

from tests.compare.models import auditor, net, permuted, probes
from xai_callbacks import Auditor, GradCAM, History, ProbeSet, Regression, Why
from xai_callbacks.compare import compare
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.metrics.representations import linear_cka
from xai_callbacks.record import AuditRecord

auditor_of_few = Auditor(probes(6), explainers=[GradCAM()])


@pytest.fixture(scope="module")
def records():
    torch.manual_seed(0)
    first, asks = net(), auditor()
    models = {"net": first, "same": copy.deepcopy(first), "permuted": permuted(first), "other": net(5)}
    return {name: asks.audit(each, step=7) for name, each in models.items()}


def two(records, name, **given):
    return compare({"net": records["net"], name: records[name]}, **given)


def test_identical_weights_differ_by_exactly_nothing(records):
    found = two(records, "same")
    other = found.differences["same"]
    assert other.identical
    assert {row.difference.value for row in other.metrics} == {0.0}
    assert {row.beyond for row in other.metrics} <= {False, None}
    assert float(other.says.max()) == 0
    assert other.gained == other.lost == other.changed == ()
    assert len(other.agreements) == 9
    for key, each in other.agreements.items():
        known = each.distance.isfinite()
        assert bool(known.any())
        assert set(each.distance[known].tolist()) == {0.0}
        assert set(each.rank_correlation[known].tolist()) == {1.0}
        assert set(each.ssim[known].tolist()) == {1.0}
        assert set(each.overlap[known].tolist()) == {1.0}
        assert float(found.difference_maps("same", key).nan_to_num().abs().max()) == 0
        assert found.difference_regions("same", key, (16, 16)) == ()
    assert other.cka == {"0": 1.0, "1": 1.0, "6": 1.0}
    assert other.novelty == {"gradnorm": pytest.approx(1.0)}
    assert found.notes[0] == "same has the weights of net."
    assert found.verdict[0] == "The models have the same weights: nothing differs."


def test_permuted_channels_differ_by_less_than_rounding(records):
    found = two(records, "permuted")
    other = found.differences["permuted"]
    assert not other.identical
    assert max(abs(row.difference.value) for row in other.metrics) < 1e-5
    assert not any(row.beyond for row in other.metrics)
    assert float(other.says.max()) < 1e-5
    assert other.gained == other.lost == other.changed == ()
    for key, each in other.agreements.items():
        assert float(each.distance.nan_to_num().max()) < 1e-5
        assert float(each.ssim.nan_to_num(1).min()) > 1 - 1e-5
        assert float(found.difference_maps("permuted", key).nan_to_num().abs().max()) < 1e-5
        assert found.difference_regions("permuted", key, (16, 16)) == ()
    assert min(other.cka.values()) > 1 - 1e-5


def test_flips_are_told_apart_by_their_direction(records):
    a, b = records["net"], records["other"]
    other = two(records, "other").differences["other"]
    labels, before, after = a.truth.tolist(), a.predictions.tolist(), b.predictions.tolist()
    rows = list(zip(labels, before, after, strict=True))
    assert other.gained == tuple(i for i, (y, p, q) in enumerate(rows) if p != y and q == y)
    assert other.lost == tuple(i for i, (y, p, q) in enumerate(rows) if p == y and q != y)
    assert other.changed == tuple(i for i, (y, p, q) in enumerate(rows) if p != q and y not in (p, q))
    assert other.gained
    assert other.lost
    swapped = compare({"other": b, "net": a}).differences["net"]
    assert (swapped.gained, swapped.lost) == (other.lost, other.gained)


def test_same_answer_different_reasons(records):
    found = two(records, "other")
    other = found.differences["other"]
    a, b = records["net"], records["other"]
    same = (a.predictions == b.predictions).nonzero()[:, 0].tolist()
    distance = other.agreements["gradcam/why"].distance
    assert set(other.reasons) == {place for place in same if not math.isnan(float(distance[place]))}
    assert distance[list(other.reasons)].tolist() == sorted(distance[list(other.reasons)].tolist(), reverse=True)
    assert any("Same answer, different reasons" in sentence for sentence in found.verdict)


def test_probes_with_the_same_answer_count_though_their_maps_are_empty(records):
    a = records["net"]
    heat = a.maps["gradcam"].heatmaps.clone()
    heat[:, :13] = 0
    b = replace(a, weights="b", maps={"gradcam": replace(a.maps["gradcam"], heatmaps=heat)})
    found = compare({"a": replace(b, weights="a"), "b": b})
    other = found.differences["b"]
    assert (other.same, len(other.reasons)) == (40, 27)
    said = next(sentence for sentence in found.verdict if "different reasons" in sentence)
    assert "on 0 of the 27 with maps to compare, of 40 probes with the same answer, the maps gradcam/why are" in said
    whole = next(
        each for each in compare({"a": a, "b": replace(a, weights="b")}).verdict if "different reasons" in each
    )
    assert "of 40 probes with the same answer the maps" in whole


def test_only_answers_to_the_same_question_are_compared(records):
    other = two(records, "other").differences["other"]
    why, label = other.agreements["gradcam/why"], other.agreements["gradcam/why_label"]
    assert torch.equal(why.same, records["net"].predictions == records["other"].predictions)
    assert bool(label.same.all())
    assert bool(why.distance[~why.same].isnan().all())


def test_the_difference_map_is_the_heatmap_of_the_difference_of_logits(records):
    found = two(records, "other")
    maps = found.difference_maps("other", "gradcam/why_label")
    expected = (
        records["other"].maps["gradcam"].heatmaps[1].double() - records["net"].maps["gradcam"].heatmaps[1].double()
    )
    assert torch.equal(maps, expected)
    rows = torch.arange(len(maps))
    # The cells of these maps add up to the logit less the bias of the last layer.
    logits = [records[name].outputs[rows, records[name].truth] for name in ("net", "other")]
    biases = [net(seed)[6].bias[records["net"].truth] for seed in (0, 5)]
    change = (logits[1] - biases[1]) - (logits[0] - biases[0])
    assert maps.sum(dim=(1, 2)).tolist() == pytest.approx(change.tolist(), abs=1e-4)


@pytest.mark.parametrize("size", [(8, 8), (16, 24)])
def test_regions_lie_where_heat_was_added(records, size):
    a = records["net"]
    given = a.maps["gradcam"]
    height, width = given.heatmaps.shape[-2:]
    heat = given.heatmaps.clone()
    heat[:, :, -1, 0] += 3.0
    heat[:, :, 0, -1] -= 5.0
    more = replace(a, weights="", maps={**a.maps, "gradcam": replace(given, heatmaps=heat)})
    found = compare({"net": a, "more": more})
    mean = found.mean_difference_map("more", "gradcam/why")
    assert mean[-1, 0] == pytest.approx(3.0, abs=1e-5)
    assert mean[0, -1] == pytest.approx(-5.0, abs=1e-5)
    assert int((mean != 0).sum()) == 2
    (region,) = found.difference_regions("more", "gradcam/why", size)
    scale = size[0] / height, size[1] / width
    assert region.place[0] >= size[0] - scale[0]
    assert region.place[1] < scale[1]
    assert bool(region.mask[-1, 0])
    (back,) = compare({"more": more, "net": a}).difference_regions("net", "gradcam/why", size)
    assert bool(back.mask[0, -1])


def test_heatmaps_that_are_not_there_are_named(records):
    with pytest.raises(ConfigurationError, match=r"both audits have \(gradcam/why, .*\), but got 'gradcam'"):
        two(records, "other").difference_maps("other", "gradcam")


def test_where_no_maps_can_be_compared_there_is_no_region(records):
    elsewhere = replace(records["net"], weights="", facts=(records["net"].facts + 1) % 3)
    found = compare({"net": records["net"], "elsewhere": elsewhere})
    assert bool(found.mean_difference_map("elsewhere", "gradcam/why").isnan().all())
    assert found.difference_regions("elsewhere", "gradcam/why", (16, 16)) == ()


def test_similarity_of_stages_is_linear_cka(records):
    other = two(records, "other").differences["other"]
    grams = [records[name].grams for name in ("net", "other")]
    assert other.cka == {name: linear_cka(grams[0][name], grams[1][name]) for name in ("0", "1", "6")}


def test_stages_of_other_names_are_compared_with_the_most_similar_one(records):
    renamed = replace(records["same"], weights="", grams={f"x.{name}": g for name, g in records["same"].grams.items()})
    found = compare({"net": records["net"], "renamed": renamed}).differences["renamed"].cka
    assert found == {"0 ~ x.0": 1.0, "1 ~ x.1": 1.0, "6 ~ x.6": 1.0}


def test_novelty_is_compared_by_the_order_of_the_probes(records):
    scores = [records[name].scores["gradnorm"].numpy() for name in ("net", "other")]
    found = two(records, "other").differences["other"].novelty
    assert found == {"gradnorm": pytest.approx(stats.spearmanr(*scores).statistic)}


def test_the_ranking_begins_where_answers_differ_most(records):
    ranking = compare({name: records[name] for name in ("net", "permuted", "other")}).ranking()
    says = [each.says for each in ranking]
    assert len(ranking) == len(records["net"].names)
    assert says == sorted(says, reverse=True)
    assert ranking[0].model == "other"
    probabilities = [records[name].outputs.double().softmax(dim=1) for name in ("net", "other")]
    distance = (probabilities[0] - probabilities[1]).abs().sum(dim=1) / 2
    assert says[0] == pytest.approx(float(distance.max()))
    assert ranking[0].index == int(distance.argmax())


def test_maps_of_other_grids_are_compared_on_a_common_one(records):
    a = records["net"]
    fine = a.maps["gradcam"].heatmaps
    coarse = fine.reshape(*fine.shape[:2], 4, 2, 4, 2).sum(dim=(3, 5))
    other = replace(a, maps={"gradcam": replace(a.maps["gradcam"], heatmaps=coarse)}, weights="other")
    found = compare({"fine": a, "coarse": other})
    each = found.differences["coarse"].agreements["gradcam/why"]
    assert each.grid == (4, 4)
    assert each.resampled
    assert float(each.distance.nan_to_num().max()) < 1e-9
    assert "Maps of gradcam have different grids; compared on 4 x 4." in found.notes


def test_doubtful_heat_is_noted(records):
    doubted = replace(records["other"], trust={"gradcam/why": "fails the deletion test"})
    notes = compare({"net": records["net"], "other": doubted}).notes
    assert "other: heat of gradcam/why is in doubt: it fails the deletion test." in notes


def test_empty_maps_agree_with_none_and_are_noted(records):
    def emptied(record, **fields):
        maps = {name: replace(each, heatmaps=torch.zeros_like(each.heatmaps)) for name, each in record.maps.items()}
        return replace(record, maps=maps, **fields)

    dead = [emptied(records["net"], weights=name) for name in ("one", "two")]
    found = compare({"one": dead[0], "two": dead[1]})
    each = found.differences["two"].agreements["gradcam/why_label"]
    assert all(bool(part.isnan().all()) for part in (each.distance, each.ssim, each.overlap, each.rank_correlation))
    assert "two: maps of gradcam are empty on 40 of 40 probes." in found.notes


def test_what_failed_is_noted(records):
    broken = replace(records["other"], failed=("The trial CueTrial failed and was left out.",))
    assert (
        "other: The trial CueTrial failed and was left out." in compare({"net": records["net"], "other": broken}).notes
    )


def test_what_audits_say_of_themselves_is_noted_once(records):
    both, own = "Probabilities were explained by their logarithm.", "There are no heatmaps. Expected a feature map."
    a = replace(records["net"], notes=(both,))
    b = replace(records["other"], notes=(own, both), maps={})
    notes = compare({"a": a, "b": b, "c": replace(a, weights="c")}).notes
    assert [note for note in notes if both in note] == [both]
    assert [note for note in notes if own in note] == [f"b: {own}"]
    notes = compare({"a": a, "c": replace(records["other"], notes=())}).notes
    assert f"a: {both}" in notes


def test_doubtful_heat_is_noted_in_full_where_the_audit_says_why(records):
    why = "The heatmaps `gradcam/why` fail the deletion test: hiding what they mark takes no more."
    doubted = replace(records["other"], trust={"gradcam/why": "fails the deletion test"}, notes=(why,))
    notes = compare({"net": records["net"], "other": doubted}).notes
    assert [note for note in notes if "gradcam/why" in note] == [f"other: {why}"]


def test_few_probes_are_noted(records):
    notes = compare({"net": records["net"], "other": records["other"]}).notes
    assert not any("no intervals" in note for note in notes)
    few = [auditor_of_few.audit(net(seed)) for seed in (0, 5)]
    notes = compare(dict(zip("ab", few, strict=True))).notes
    assert "Of 6 probes there are no intervals; 30 are needed." in notes


def test_the_latest_audits_of_histories_are_compared(records, tmp_path):
    history = History(tmp_path)
    for step, name in enumerate(("net", "other", "same")):
        history.append(replace(records[name], step=step))
    found = compare({"run": history, "net": records["net"]})
    assert found.record("run").step == 2
    assert found.differences["net"].identical


def test_as_dict_is_plain_json(records):
    found = compare({name: records[name] for name in ("net", "same", "other")})
    read = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert read["baseline"] == "net"
    assert read["verdict"] == list(found.verdict)
    assert read["differences"]["same"]["identical"] is True
    assert read["differences"]["other"]["lost"] == list(found.differences["other"].lost)
    first = next(each for each in read["differences"]["other"]["metrics"] if each["key"] == "confidence")
    assert first["difference"]["value"] == pytest.approx(first["b"]["value"] - first["a"]["value"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": "elsewhere"}, "differ in probes"),
        ({"asked": ("Why('label')",)}, "differ in questions"),
        ({"outputs": torch.zeros(40, 5)}, r"differ in the number of outputs \(3, 5\)"),
        ({"explainers": {"gradcam": "GradCAM(target_layer='x')"}}, "differ in explainers .GradCAM"),
    ],
)
def test_what_cannot_be_compared_is_refused(records, changes, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        compare({"net": records["net"], "other": replace(records["other"], **changes)})
    assert "Audit both with one Auditor" in str(caught.value)


def test_of_other_probes_the_number_of_outputs_is_no_reason(records):
    few = auditor_of_few.audit(net())
    with pytest.raises(ConfigurationError, match="differ in probes") as caught:
        compare({"net": records["net"], "few": few})
    assert "number of outputs" not in str(caught.value)


def test_arguments_are_checked(records):
    record = records["net"]
    with pytest.raises(ConfigurationError, match="two or more, but got 1"):
        compare({"net": record})
    with pytest.raises(ConfigurationError, match="`models` to be audits by the names"):
        compare([record, record])
    with pytest.raises(ConfigurationError, match=r"models\['a'\]` to be a History or an AuditRecord"):
        compare({"a": "path", "b": record})
    with pytest.raises(ConfigurationError, match="latest audit, but got none"):
        compare({"a": History(), "b": record})
    with pytest.raises(ConfigurationError, match="one without tensors"):
        compare({"a": record.thin(), "b": record})
    with pytest.raises(ConfigurationError, match="`confidence` to be a number in"):
        compare({"a": record, "b": record}, confidence=95)
    with pytest.raises(ConfigurationError, match="3 trainings or more, but got 2"):
        compare({"a": record, "b": record}, seeds=[record, record])
    with pytest.raises(ConfigurationError, match="some have the same weights"):
        compare({"a": record, "b": record}, seeds=[record, record, records["other"]])


def test_regression_has_no_flips_but_distances():
    images = probes().images
    asks = Auditor(ProbeSet.from_tensors(images, targets=images.mean(dim=(1, 2, 3))), [Why()], explainers=[GradCAM()])
    assert isinstance(asks.probes.task, Regression)
    torch.manual_seed(0)
    first = net()
    first[6] = torch.nn.Linear(8, 1)
    second = copy.deepcopy(first)
    with torch.no_grad():
        second[6].weight.mul_(1.5)
    found = compare({"a": asks.audit(first), "b": asks.audit(second)}).differences["b"]
    assert found.gained == found.lost == ()
    values = [asks.audit(each).outputs[:, 0] for each in (first, second)]
    apart = (values[1] - values[0]).abs() > 0.1 * images.mean(dim=(1, 2, 3)).std(correction=0)
    assert found.changed == tuple(apart.nonzero()[:, 0].tolist())
    assert not set(found.changed) & set(found.reasons)
    assert 0 < float(found.says.min()) <= float(found.says.max()) < 1


def test_records_do_not_pile_up_in_memory(tmp_path):
    """No more stays than the latest record of each history, which it holds itself."""
    alive = weakref.WeakSet()
    load = AuditRecord.load.__func__

    def counted(cls, path):
        record = load(cls, path)
        alive.add(record.maps["gradcam"])
        return record

    asks, models = auditor(explainers=[GradCAM()]), {}
    for seed in range(6):
        history = History(tmp_path / str(seed))
        history.append(asks.audit(net(seed)))
        history.append(asks.audit(net(seed + 1)))
    AuditRecord.load = classmethod(counted)
    try:
        models = {str(seed): History(tmp_path / str(seed)) for seed in range(6)}
        found = compare(models)
        gc.collect()
    finally:
        AuditRecord.load = classmethod(load)
    assert len(found.differences) == 5
    assert len(alive) <= 6
