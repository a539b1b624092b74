"""What sentences may name: every metric under its key, and every mistake told before training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.expectations.records import VOCABULARY, parsed
from tests.tiny import tiny_probes
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.expectations import Expectation, Vocabulary, parse_expectations
from xai_callbacks.expectations.expectation import Target
from xai_callbacks.expectations.names import NAMES, keys_of
from xai_callbacks.metrics.cluster_judge import ClusterJudge
from xai_callbacks.metrics.group_judge import GroupJudge
from xai_callbacks.metrics.group_sums import group_sums


@pytest.mark.parametrize(
    ("sentence", "target"),
    [
        ("accuracy > 0.5", Target("accuracy", share=True)),
        ("confidence > 0.5", Target("confidence")),
        ("switched < 0.5", Target("switched", share=True)),
        ("relevance_mass[core] > 0.5", Target("gradcam/why/relevance_mass/core")),
        ("relevance_lift[core] > 2", Target("gradcam/why/relevance_lift/core")),
        ("relevance_rank[core] > 0.5", Target("gradcam/why/relevance_rank/core")),
        ("soft_iou[core] > 0.5", Target("gradcam/why/soft_iou/core")),
        (
            "relevance_mass[spurious] of why_rather_than < 0.2",
            Target("gradcam/why_rather_than/relevance_mass/spurious"),
        ),
        ("drift of why_rather_than < 0.2", Target("gradcam/why_rather_than/drift")),
        ("cue_effect[tint] < 0.05", Target("cue/tint/effect")),
        ("cue_effect_logit[tint] < 7", Target("cue/tint/effect_logit")),
        ("cue_effect_added[tint] < 0.05", Target("cue/tint/effect_added")),
        ("cue_effect_removed[tint] < 0.05", Target("cue/tint/effect_removed")),
        ("cue_flip_rate[tint] < 0.05", Target("cue/tint/flip_rate", share=True)),
        ("cue_tv[tint] < 0.05", Target("cue/tint/tv")),
        ("cue_consistency[tint] > 0.9", Target("cue/tint/consistency", share=True)),
        ("cue_only_accuracy[tint] < 0.5", Target("cue/tint/only_acc", share=True)),
        ("object_only_accuracy[tint] > 0.5", Target("cue/tint/object_only_acc", share=True)),
        ("pair_accuracy[tint] > 0.5", Target("cue/tint/pair_acc", share=True)),
        ("spurious_score[tint] < 0.1", Target("cue/tint/spurious_score", share=True)),
        ("alarm[tint] < 1", Target("alarm/cue/tint", unit="nothing")),
        ("region_drop[core] > 0.1", Target("region/core/drop_minus_placebo")),
        ("rfs[core] > 0", Target("rfs/core")),
        ("background_gap < 0.1", Target("bg/gap")),
        ("background_only_accuracy < 0.5", Target("bg/only_acc", share=True)),
        ("foreground_only_accuracy > 0.5", Target("fg/only_acc", share=True)),
        ("same_background_accuracy > 0.5", Target("bg/same_acc", share=True)),
        ("random_background_accuracy > 0.5", Target("bg/rand_acc", share=True)),
        ("top1_stable under half_fill", Target("fill/disagree", complement=True, share=True)),
        ("top1_stable under tint", Target("cue/tint/consistency", share=True)),
        ("fill_tv < 0.3", Target("fill/tv")),
        ("fill_disagree < 0.3", Target("fill/disagree", share=True)),
        ("novelty[energy] < -3", Target("novelty/energy")),
        ("novelty[energy].auroc > 0.8", Target("novelty/energy/auroc")),
        ("novelty[grad_norm].fpr_at_95tpr_id < 0.3", Target("novelty/grad_norm/fpr_at_95tpr_id")),
        ("novelty[energy].rank_correlation > 0.5", Target("novelty/energy/rank_correlation")),
        ("worst_group_accuracy > 0.7 from epoch 5", Target("group/wga", unit="images")),
        ("validation_accuracy > 0.7", Target("group/accuracy_all", share=True, unit="images")),
        ("conflict_gap < 0.1", Target("group/conflict_gap", unit="images")),
        ("conditional_mi < 0.1", Target("group/cond_mi", unit="images")),
        ("conflicting_loss < 0.7", Target("group/loss_conflicting", unit="images")),
        ("bias_amplification < 0.1", Target("group/bias_amplification", unit="images")),
        ("worst_cluster_accuracy > 0.6", Target("cluster/worst_acc")),
        ("cluster_count < 4", Target("cluster/count", unit="nothing")),
        ("`gradcam/why/relevance_mass/core` > 0.5", Target("gradcam/why/relevance_mass/core")),
        ("`region/core/drop` > 0.1", Target("region/core/drop")),
        ("`region/core/drop/local_mean` > 0.1", Target("region/core/drop/local_mean")),
        ("`group/accuracy/0_1` > 0.1", Target("group/accuracy/0_1", share=True, unit="images")),
        ("`group/accuracy/wolf on snow` > 0.1", Target("group/accuracy/wolf on snow", share=True, unit="images")),
        ("`group/not_finite` <= 0.5", Target("group/not_finite", unit="images")),
        ("relevance_mass[core] > 0.5 for class wolf", Target("gradcam/why/relevance_mass/core", class_index=0)),
        ("relevance_mass[core] > 0.5 for class 2", Target("gradcam/why/relevance_mass/core", class_index=2)),
        ("novelty[energy] < 3 for class 'great white'", Target("novelty/energy", class_index=2)),
    ],
)
def test_name_leads_to_the_key_of_a_metric(sentence, target):
    assert parsed(sentence)[0].target == target


def test_names_and_keys_are_unique():
    keys = [row.key for row in NAMES.values()]
    assert len(set(keys)) == len(keys)


def test_every_possible_key_can_be_named_in_quotes():
    for key in keys_of(VOCABULARY):
        assert parsed(f"`{key}` > 0.25" if key != "alarm/cue/tint" else "`alarm/cue/tint` < 1")[0].target.key == key


def test_every_judgement_of_groups_can_be_named():
    logits, labels, cues = torch.eye(2)[[0, 1, 0, 1]], torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    judge, sums = GroupJudge([0, 1], torch.ones(2, 2, dtype=torch.int64)), group_sums(logits, labels, cues, 2)
    judged = {**judge.judge(sums), **judge.judge_each(sums), **judge.judge_each(sums, ["a b", "c/d", "e", "f"])}
    found = parsed(*(f"`{key}` > 0.25" for key in judged))
    assert [each.target.key for each in found] == list(judged)
    assert {each.target.unit for each in found} == {"images"}


def test_every_judgement_of_clusters_can_be_named():
    probes = tiny_probes(12)
    clustered = ClusterJudge(probes).judge(
        torch.zeros(12, 3), probes.labels, torch.zeros(1, 12, 2, 2), probes.labels[None]
    )
    found = parsed(*(f"`{key}` > 0.25" for key in clustered.metrics))
    assert [each.target.key for each in found] == list(clustered.metrics)


def test_absolute_error_is_for_regression():
    vocabulary = Vocabulary(task="regression", labelled=True)
    assert parsed("absolute_error < 3", vocabulary=vocabulary)[0].target == Target("absolute_error")


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        (
            "accurcy > 0.5",
            "Expected the name of a metric, but got 'accurcy' in 'accurcy > 0.5'. Did you mean 'accuracy'?",
        ),
        (
            "relevence_mass[core] > 0.5",
            "Expected the name of a metric, but got 'relevence_mass' in 'relevence_mass[core] > 0.5'. "
            "Did you mean 'relevance_mass'?",
        ),
        (
            "relevance_mass[cor] > 0.5",
            "Expected `relevance_mass` to name a region of the probes, but got 'cor' in 'relevance_mass[cor] > 0.5'. "
            "Did you mean 'core'?",
        ),
        (
            "relevance_mass[sky] > 0.5",
            "Expected `relevance_mass` to name a region of the probes, but got 'sky' in 'relevance_mass[sky] > 0.5'. "
            "Known: core, spurious. Give the probes such a mask by `masks=`.",
        ),
        (
            "relevance_mass > 0.5",
            "Expected `relevance_mass` to name a region of the probes, but got none in 'relevance_mass > 0.5'. "
            "Write `relevance_mass[core]`.",
        ),
        ("accuracy[core] > 0.5", "Expected `accuracy` without brackets, but got `[core]` in 'accuracy[core] > 0.5'."),
        ("accuracy.mean > 0.5", "Expected `accuracy` without a point, but got `.mean` in 'accuracy.mean > 0.5'."),
        (
            "cue_effect[snow] < 0.05",
            "Expected `cue_effect` to name a cue that is tried, but got 'snow' in 'cue_effect[snow] < 0.05'. "
            "Known: tint. Add a CueTrial of a cue of that name to the trials.",
        ),
        (
            "cue_effect[tin] < 0.05",
            "Expected `cue_effect` to name a cue that is tried, but got 'tin' in 'cue_effect[tin] < 0.05'. "
            "Did you mean 'tint'?",
        ),
        (
            "region_drop[spurious] > 0.1",
            "Expected `region_drop` to name a region that is filled, but got 'spurious' in "
            "'region_drop[spurious] > 0.1'. Known: core. Add a RegionTrial of that region to the trials.",
        ),
        (
            "novelty[enrgy].auroc > 0.8",
            "Expected `novelty.auroc` to name a novelty score, but got 'enrgy' in 'novelty[enrgy].auroc > 0.8'. "
            "Did you mean 'energy'?",
        ),
        (
            "novelty[energy].aroc > 0.8",
            "Expected what there is of `novelty`, but got `.aroc` in 'novelty[energy].aroc > 0.8'. "
            "Did you mean 'auroc'?",
        ),
        (
            "relevance_mass[core] of whyy > 0.5",
            "Expected a question that is asked after `of`, but got 'whyy' in 'relevance_mass[core] of whyy > 0.5'. "
            "Did you mean 'why'?",
        ),
        (
            "relevance_mass[core] of what_if_not_7 > 0.5",
            "Expected a question that is asked after `of`, but got 'what_if_not_7' in "
            "'relevance_mass[core] of what_if_not_7 > 0.5'. Known: why, why_rather_than. Ask it by `questions=`.",
        ),
        (
            "accuracy of why > 0.5",
            "Expected `accuracy` without `of`, but got `of why` in 'accuracy of why > 0.5'. It is of no question.",
        ),
        (
            "`gradcam/why/relevance_mass/core` of why > 0.5",
            "Expected `gradcam/why/relevance_mass/core` without `of`, but got `of why` in "
            "'`gradcam/why/relevance_mass/core` of why > 0.5'. It is of no question.",
        ),
        (
            "top1_stable",
            "Expected `top1_stable` to say under what, but got nothing in 'top1_stable >= 0.95'. "
            "Write `top1_stable under half_fill`.",
        ),
        (
            "top1_stable under haf_fill",
            "Expected a trial after `under`, but got 'haf_fill' in 'top1_stable under haf_fill >= 0.95'. "
            "Did you mean 'half_fill'?",
        ),
        (
            "top1_stable under rain",
            "Expected a trial after `under`, but got 'rain' in 'top1_stable under rain >= 0.95'. "
            "Known: half_fill, tint. Add a HalfTrial or CueTrial to the trials.",
        ),
        (
            "top1_stable[core] under half_fill",
            "Expected `top1_stable` without brackets and point, but got `top1_stable[core]` in "
            "'top1_stable[core] under half_fill >= 0.95'. Write `top1_stable under ...`.",
        ),
        (
            "accuracy under half_fill > 0.5",
            "Expected `accuracy` without `under`, but got `under half_fill` in 'accuracy under half_fill > 0.5'.",
        ),
        (
            "accuracy > 0.5 for class wulf",
            "Expected the name or index of a class after `for class`, but got 'wulf' in "
            "'accuracy > 0.5 for class wulf'. Did you mean 'wolf'?",
        ),
        (
            "accuracy > 0.5 for class zebra",
            "Expected the name or index of a class after `for class`, but got 'zebra' in "
            "'accuracy > 0.5 for class zebra'. Known: wolf, husky, great white.",
        ),
        (
            "accuracy > 0.5 for class 3",
            "Expected the name or index of a class after `for class`, but got 3 in 'accuracy > 0.5 for class 3'. "
            "Indexes go from 0 to 2.",
        ),
        (
            "accuracy > 0.5 for group land",
            "Expected probes with groups, to ask `for group`, but got none in 'accuracy > 0.5 for group land'. "
            "Give the probes `groups=`; a record alone does not have them, see `Vocabulary.of_record`.",
        ),
        (
            "worst_group_accuracy > 0.5 for class wolf",
            "Expected a metric that each probe has a value of before `for class`, but got `worst_group_accuracy` in "
            "'worst_group_accuracy > 0.5 for class wolf'.",
        ),
        (
            "novelty[energy].auroc > 0.5 for group land",
            "Expected a metric that each probe has a value of before `for group`, but got `novelty[energy].auroc` in "
            "'novelty[energy].auroc > 0.5 for group land'.",
        ),
        (
            "accuracy > 95",
            "Expected the bound of `accuracy` to be from 0 to 1, but got 95 in 'accuracy > 95'. Did you mean 95 %?",
        ),
        (
            "cue_effect[tint] < -2",
            "Expected the bound of `cue_effect[tint]` to be from -1 to 1, but got -2 in 'cue_effect[tint] < -2'.",
        ),
        (
            "region_drop[core] < 5",
            "Expected the bound of `region_drop[core]` to be from -2 to 2, but got 5 in 'region_drop[core] < 5'.",
        ),
        (
            "validation_accuracy >= 1",
            "Expected a bound that evidence for `validation_accuracy` can reach, but got `>= 1` in "
            "'validation_accuracy >= 1'. No number of images shows that.",
        ),
        (
            "confidence > 1",
            "Expected a bound that `confidence` can meet, but got `> 1` in 'confidence > 1'. Its values end at 1.",
        ),
        (
            "confidence < 0",
            "Expected a bound that `confidence` can meet, but got `< 0` in 'confidence < 0'. Its values end at 0.",
        ),
        (
            "confidence <= 100 %",
            "Expected a bound that `confidence` can miss, but got `<= 1` in 'confidence <= 1'. Its values end at 1.",
        ),
        (
            "confidence >= 0",
            "Expected a bound that `confidence` can miss, but got `>= 0` in 'confidence >= 0'. Its values end at 0.",
        ),
        (
            "accuracy >= 1",
            "Expected a bound that evidence for `accuracy` can reach, but got `>= 1` in 'accuracy >= 1'. "
            "No number of probes shows that.",
        ),
        (
            "`gradcam/why/relevance_mas/core` > 0.5",
            "Expected a key of a metric, but got 'gradcam/why/relevance_mas/core' in "
            "'`gradcam/why/relevance_mas/core` > 0.5'. Did you mean 'gradcam/why/relevance_mass/core'?",
        ),
        (
            "`audit/gradcam/why/relevance_mass/core` > 0.5",
            "Expected a key of a metric, but got 'audit/gradcam/why/relevance_mass/core' in "
            "'`audit/gradcam/why/relevance_mass/core` > 0.5'. Did you mean 'gradcam/why/relevance_mass/core'?",
        ),
        (
            "`cue/snow/effect` > 0.5",
            "Expected a key of a metric, but got 'cue/snow/effect' in '`cue/snow/effect` > 0.5'. "
            "Did you mean 'cue/tint/effect'?",
        ),
        (
            "absolute_error < 3",
            "Expected what `absolute_error` needs, but got a classifier in 'absolute_error < 3'. Ask for `accuracy`.",
        ),
    ],
)
def test_what_cannot_be_named_is_an_error_with_a_way_out(sentence, message):
    with pytest.raises(ConfigurationError) as error:
        parsed(sentence)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        ("accuracy > 0.5", "but got probes without labels in 'accuracy > 0.5'. Give the probes `labels=`."),
        ("relevance_mass[core] > 0.5", "Expected a question whose heatmaps are judged, but got none in"),
        ("cue_effect[snow] < 0.05", "Add a CueTrial of a cue of that name to the trials."),
        ("rfs[core] > 0", "Add a NoiseTrial of that region to the trials."),
        ("background_gap < 0.1", "Add a BackgroundTrial to the trials."),
        ("top1_stable under half_fill", "Add a HalfTrial to the trials."),
        ("top1_stable", "Write `top1_stable under half_fill`."),
        ("novelty[energy] < 3", "Pass such a score by `novelty=`."),
        ("novelty[energy].auroc > 0.8", "Pass them by `novel=`."),
        ("worst_group_accuracy > 0.7", "but got no groups of the validation set in"),
        ("worst_group_accuracy > 0.7", "Pass `group=`."),
        ("worst_cluster_accuracy > 0.7", "Have the heatmaps clustered."),
        ("`group/wga` > 0.7", "Expected what `group/wga` needs, but got no groups of the validation set"),
        ("relevance_mass[core] > 0.5 for class 0", "Expected a question"),
        ("confidence > 0.5 for class 0", "Expected labelled probes, to ask `for class`, but got none"),
    ],
)
def test_metric_that_is_not_configured_says_what_to_pass(sentence, message):
    with pytest.raises(ConfigurationError) as error:
        parsed(sentence, vocabulary=Vocabulary())
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("missing", "sentence", "message"),
    [
        ("aligned", "conflict_gap < 0.1", "Give the Group of `group=` its `aligned=`."),
        ("train_counts", "bias_amplification < 0.1", "Give the Group of `group=` its `train_counts=`."),
        ("alarms", "alarm[tint] < 1", "Have the cues watched, as a ShortcutMonitor does."),
        ("novel", "novelty[energy].auroc > 0.8", "Pass them by `novel=`."),
    ],
)
def test_single_thing_that_is_missing_is_named(missing, sentence, message):
    with pytest.raises(ConfigurationError, match=message):
        parsed(sentence, vocabulary=replace(VOCABULARY, **{missing: False}))


def test_accuracy_of_the_cue_alone_needs_the_object():
    with pytest.raises(ConfigurationError, match=r"Give the probes that mask by `masks=`\."):
        parsed("cue_only_accuracy[tint] < 0.5", vocabulary=replace(VOCABULARY, regions=("spurious",)))


def test_regression_has_no_classes():
    vocabulary = replace(VOCABULARY, task="regression", labels=None, class_names=None, num_classes=None)
    with pytest.raises(ConfigurationError, match="Expected classes, to ask `for class`, but got a regression"):
        parsed("drift < 0.5 for class 3", vocabulary=vocabulary)
    with pytest.raises(ConfigurationError, match="Expected what `accuracy` needs, but got a regression"):
        parsed("accuracy > 0.5", vocabulary=vocabulary)


def test_class_without_a_probe_is_refused():
    with pytest.raises(ConfigurationError, match="Expected probes of class 'husky', but got none"):
        parsed("accuracy > 0.5 for class husky", vocabulary=replace(VOCABULARY, labels=(0, 2)))


def test_name_that_consists_of_digits_goes_before_the_index():
    vocabulary = replace(VOCABULARY, class_names=("1", "0", "7"))
    found = parsed(
        "accuracy > 0.5 for class 0",
        "accuracy > 0.5 for class '1'",
        "accuracy > 0.5 for class 2",
        vocabulary=vocabulary,
    )
    assert [each.target.class_index for each in found] == [1, 0, 2]


def test_name_in_quotes_is_never_an_index():
    with pytest.raises(ConfigurationError, match="but got '2' in"):
        parsed("accuracy > 0.5 for class '2'")


def test_index_is_checked_as_soon_as_the_number_of_classes_is_known():
    unseen = replace(VOCABULARY, class_names=None, num_classes=None, labels=(0, 5))
    assert parsed("accuracy > 0.5 for class 5", vocabulary=unseen)[0].target.class_index == 5
    with pytest.raises(ConfigurationError, match=r"Indexes go from 0 to 4\."):
        parsed("accuracy > 0.5 for class 5", vocabulary=replace(unseen, num_classes=5))
    with pytest.raises(ConfigurationError, match="have no `class_names`, and a record has none: write an index"):
        parsed("accuracy > 0.5 for class wolf", vocabulary=unseen)


def test_name_of_two_classes_is_refused():
    with pytest.raises(ConfigurationError, match=r"but got 2 of that name in .* Write the index"):
        parsed("accuracy > 0.5 for class cat", vocabulary=replace(VOCABULARY, class_names=("cat", "cat", "owl")))


def test_group_is_looked_up_among_the_probes():
    vocabulary = replace(VOCABULARY, groups=(1, 0, 1, -1), group_names=("land", "sea"))
    found = parsed("accuracy > 0.5 for group sea", "accuracy > 0.4 for group 0", vocabulary=vocabulary)
    assert [each.target.members for each in found] == [(True, False, True, False), (False, True, False, False)]
    with pytest.raises(ConfigurationError, match=r"Did you mean 'land'\?"):
        parsed("accuracy > 0.5 for group lnd", vocabulary=vocabulary)
    with pytest.raises(ConfigurationError, match="Expected probes of group 'sea', but got none"):
        parsed("accuracy > 0.5 for group sea", vocabulary=replace(vocabulary, groups=(0, -1)))


def test_further_keys_can_be_named_in_quotes_only():
    vocabulary = replace(VOCABULARY, extra=("mine",))
    assert parsed("`mine` > 1000", vocabulary=vocabulary)[0].target == Target("mine")
    with pytest.raises(ConfigurationError, match=r"Put the key of an audit in backquotes\."):
        parsed("mine > 1000", vocabulary=vocabulary)
    with pytest.raises(ConfigurationError, match="Expected a metric that each probe has a value of"):
        parsed("`mine` > 1000 for class 0", vocabulary=vocabulary)


def test_sentences_names_and_objects_mix():
    found = parse_expectations(
        [
            "accuracy > 90 %",
            {"name": "looks at the animal", "expect": "relevance_mass[core] > 0.5"},
            Expectation("novelty[energy].auroc", ">", 0.8, name="sees what is new"),
        ],
        VOCABULARY,
    )
    assert [each.label for each in found] == ["accuracy > 0.9", "looks at the animal", "sees what is new"]
    assert [each.target.key for each in found] == [
        "accuracy",
        "gradcam/why/relevance_mass/core",
        "novelty/energy/auroc",
    ]
    assert parse_expectations(found, VOCABULARY) == found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("accuracy > 0.5", r"Expected `expectations` to be a list, but got str. Write \[...\] around it."),
        ({"name": "a", "expect": "accuracy > 0.5"}, "Expected `expectations` to be a list, but got dict"),
        (None, "Expected `expectations` to be a list, but got NoneType"),
        ([0.5], r"Expected `expectations\[0\]` to be a sentence such as 'accuracy > 0.9', but got float 0.5."),
        (["accuracy > 0.5", ["a"]], r"Expected `expectations\[1\]` to be a sentence"),
        (
            [{"name": "a", "expects": "accuracy > 0.5"}],
            r"Expected `expectations\[0\]` to have the keys 'name' and 'expect', but got 'expects'. "
            r"Did you mean 'expect'\?",
        ),
        ([{"expect": "accuracy > 0.5"}], "to have text under 'name', but got None."),
        ([{"name": "a", "expect": 3}], "to have text under 'expect', but got 3."),
        ([{3: "a"}], "but got 3. Known: name, expect."),
        ([{"name": " ", "expect": "accuracy > 0.5"}], "Expected `name` to be readable text on one line, but got ' '."),
        (
            ["accuracy > 0.5", "accuracy  > 50 %"],
            "Expected `expectations` to differ, but got 'accuracy > 0.5' twice. Remove or rename one.",
        ),
        ([Expectation("accuracy > 0.5", ">", 0.5)], "Expected nothing after the metric, but got '> 0.5'"),
    ],
)
def test_list_of_anything_else_is_refused(given, message):
    with pytest.raises(ConfigurationError, match=message):
        parse_expectations(given, VOCABULARY)


def test_same_metric_may_be_expected_twice():
    assert len(parsed("accuracy > 0.5", "accuracy > 0.9 from epoch 5", "accuracy > 0.5 for class wolf")) == 3


anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
comparisons = (">", "<", ">=", "0.5", "50 %")
clauses = ("under half_fill", "of why", "for class wolf", "for class 3", "for group sea", "from epoch 2")
keys = ("'gradcam/why/drift'", "`accuracy`")
pieces = st.sampled_from(
    [*NAMES, "top1_stable", "[core]", "[tint]", "[energy]", "[x]", ".auroc", *comparisons, *clauses, *keys]
)


@given(st.lists(pieces, min_size=1, max_size=8))
def test_any_words_of_the_vocabulary_are_understood_or_refused(given_pieces):
    joined = " ".join(given_pieces).replace(" [", "[").replace(" .", ".")
    found = looked_up_or_refused([joined])
    if found:
        sentence = str(found[0])
        assert parsed(sentence) == found
        assert parsed(sentence)[0].target == found[0].target


@given(anything)
def test_anything_else_is_refused_as_a_configuration_error(given_anything):
    assert not looked_up_or_refused(given_anything)
    assert not looked_up_or_refused([given_anything])


def looked_up_or_refused(given_anything):
    """What was found, or None where that was refused; any other error fails the test."""
    try:
        return parse_expectations(given_anything, VOCABULARY)
    except ConfigurationError:
        return None
