"""Intervals, tests and power against scipy, published numbers and brute force."""

import itertools
import math

import numpy as np
import pytest
from fixed_runs import a_run
from scipy import stats

from squeezenet_jax.report import Delta, compare, wording
from squeezenet_jax.report.statistics import family, images, paired
from squeezenet_jax.report.statistics.evidence import Evidence, Pair, gather
from squeezenet_jax.runs.predictions import Predictions

DIFFERENCES = [0.012, -0.003, 0.008, 0.001, 0.017]


def test_p_values_are_those_of_scipys_paired_t_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.9, 0.01, (2, 6))
    assert paired.p_value(list(a - b)) == pytest.approx(stats.ttest_rel(a, b).pvalue)


def test_equivalence_is_two_one_sided_tests_and_the_90_percent_interval():
    for margin in (0.002, 0.01, 0.02):
        above = stats.ttest_1samp(DIFFERENCES, -margin, alternative="greater").pvalue
        below = stats.ttest_1samp(DIFFERENCES, margin, alternative="less").pvalue
        assert paired.equivalence_p(DIFFERENCES, margin) == pytest.approx(max(above, below))
        interval = paired.paired_delta(DIFFERENCES, 0.1)
        within = -margin < interval.low and interval.high < margin
        assert (paired.equivalence_p(DIFFERENCES, margin) < 0.05) == within


def test_the_probability_of_beating_has_the_exact_binomial_interval_and_ties_widen_it():
    for wins, losses in ((3, 0), (0, 3), (7, 3), (12, 8)):
        beats = paired.chance_of_beating([0.01] * wins + [-0.01] * losses)
        exact = stats.binomtest(wins, wins + losses).proportion_ci(method="exact")
        assert beats.mean == wins / (wins + losses)
        assert (beats.low, beats.high) == pytest.approx((exact.low, exact.high))
    with_tie = paired.chance_of_beating([0.01, 0.01, -0.01, 0.0])
    assert with_tie.mean == (2 + 0.5) / 4
    assert with_tie.low == pytest.approx(stats.binomtest(2, 4).proportion_ci(method="exact").low)
    assert with_tie.high == pytest.approx(stats.binomtest(3, 4).proportion_ci(method="exact").high)


def test_power_is_that_of_other_programs():
    # G*Power 3.1, "difference between two dependent means", two-sided, 5 %, 80 %.
    assert [paired.pairs_needed(effect) for effect in (0.2, 0.5, 0.8, 1.0)] == [199, 34, 15, 10]
    for pairs in (2, 3, 5, 20):
        effect, critical = paired.detectable(pairs), stats.t.ppf(0.975, pairs - 1)
        assert stats.nct.sf(critical, pairs - 1, effect * math.sqrt(pairs)) == pytest.approx(0.8, abs=1e-4)
    draws = np.random.default_rng(0).normal(paired.detectable(3), 1, (20_000, 3))
    assert np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.01)
    assert paired.pairs_needed(1e-4) is None and paired.pairs_needed(50.0) == 2


@pytest.mark.parametrize("differences", [[], [0.01], [0.01, 0.01, 0.01 + 1e-12]])
def test_what_cannot_be_judged_has_no_p_value(differences):
    assert paired.p_value(differences) is None and paired.equivalence_p(differences, 0.1) is None
    assert paired.spread(differences) is None


def test_holm_is_the_closed_test_of_bonferroni():
    """The smallest level at which every subset of hypotheses with this one is rejected by Bonferroni."""
    p = [0.011, 0.04, 0.3, 0.012, 0.02]
    closed = []
    for this in range(len(p)):
        subsets = (s for size in range(1, 6) for s in itertools.combinations(range(5), size) if this in s)
        closed.append(max(min(1.0, len(s) * min(p[i] for i in s)) for s in subsets))
    assert family.holm(p) == pytest.approx(closed)
    assert family.holm([None, 0.02, None, 0.01]) == [None, 0.02, None, 0.02]


def test_the_simultaneous_level_is_known_where_theory_knows_it():
    seeds = tuple(range(5))
    assert family.simultaneous_level((("b", seeds),)) == 0.05
    assert family.simultaneous_level((("b", seeds), ("b", (0,)), ("b", ()))) == 0.05  # two cannot be judged
    for k in (2, 5):  # settings that share nothing: Sidak's
        apart = family.simultaneous_level(tuple((number, seeds) for number in range(k)))
        assert apart == pytest.approx(1 - 0.95 ** (1 / k), rel=0.05)
        together = family.simultaneous_level((("b", seeds),) * k)
        assert 0.05 / k <= apart < together < 0.05
    # Many seeds and one baseline: Dunnett's critical values for infinite degrees of freedom.
    for k, critical in ((2, 2.21), (4, 2.44)):
        level = family.simultaneous_level((("b", tuple(range(150))),) * k)
        assert stats.norm.isf(level / 2) == pytest.approx(critical, abs=0.03)


def predictions_of(hits, index=None):
    """A run that has these images right: class 1 is everybody's label."""
    hits = np.asarray(hits)
    top = np.stack([np.where(hits, 1, 0), np.where(hits, 0, 1)], axis=1)
    index = np.arange(len(hits)) if index is None else np.asarray(index)
    return Predictions(index, np.ones(len(hits), int), top, np.full(len(hits), 0.5, np.float32))


def test_differences_by_image_are_of_the_images_that_all_runs_could_read():
    pairs = [
        (predictions_of([1, 1, 0], [0, 2, 5]), predictions_of([0, 1, 1], [0, 2, 5])),
        (predictions_of([0, 1], [2, 5]), predictions_of([1, 1, 1, 0], [0, 1, 2, 5])),
    ]
    np.testing.assert_array_equal(images.outcome_differences(pairs), [[0, -1], [-1, 1]])
    assert images.outcome_differences([*pairs, (pairs[0][0], None)]) is None
    assert images.outcome_differences([]) is None
    others = predictions_of([1, 1, 0], [0, 2, 5])
    others.label[0] = 0  # another dataset's image
    assert images.outcome_differences([(pairs[0][0], others)]) is None


def test_the_interval_over_images_is_the_bootstraps_of_scipy():
    h_SN = np.random.default_rng(0).choice([-1, 0, 1], (3, 200), p=[0.05, 0.85, 0.1])
    ours = images.images_delta(h_SN)
    theirs = stats.bootstrap((h_SN.mean(0),), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert ours.mean == pytest.approx(h_SN.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.05 * (theirs.high - theirs.low))


def test_the_interval_over_seeds_and_images_is_the_seeds_with_the_images_share_added():
    rng = np.random.default_rng(0)
    own = rng.choice([-1, 0, 1], (4, 500), p=[0.1, 0.8, 0.1])  # nothing is the image's own
    shared = np.tile(rng.choice([-1, 0, 1], 500, p=[0.1, 0.8, 0.1]), (4, 1))  # everything is
    shared[:, 0] = [1, 0, 1, 0]
    for h_SN, image_variance in ((own, 0.0), (shared, 0.2)):
        over_seeds = paired.paired_delta(list(h_SN.mean(1)))
        both = images.seeds_and_images_delta(h_SN)
        added = (both.high - both.mean) ** 2 - (over_seeds.high - over_seeds.mean) ** 2
        assert added == pytest.approx(1.96**2 * image_variance / 500, rel=0.15, abs=2e-4)
        assert both.low <= over_seeds.low
    assert images.seeds_and_images_delta(shared[:1]) == Delta(float(shared[:1].mean()))


def test_evidence_is_gathered_for_each_setting_with_the_number_of_all():
    one = {s: Pair((0.9 + d, 0.9)) for s, d in enumerate(DIFFERENCES)}
    two = {s: Pair((0.9 + d / 50, 0.9)) for s, d in enumerate(DIFFERENCES)}
    wide, narrow, alone = gather([("b", one), ("b", two), ("b", {0: Pair((0.95, 0.9))})], margin=0.005)
    assert wide.delta == paired.paired_delta([pair.difference for pair in one.values()])
    assert wide.delta_all.low < wide.delta.low < wide.delta.high < wide.delta_all.high
    assert wide.p == pytest.approx(stats.ttest_1samp(DIFFERENCES, 0).pvalue)
    assert wide.p_holm == pytest.approx(2 * wide.p)
    assert (wide.is_equivalent, narrow.is_equivalent, alone.is_equivalent) == (False, True, False)
    assert wide.detectable == pytest.approx(50 * narrow.detectable)
    assert paired.power(wide.seeds_needed, 0.005 / np.std(DIFFERENCES, ddof=1)) >= 0.8
    assert (alone.delta, alone.p, alone.seeds_needed) == (Delta(pytest.approx(0.05)), None, None)
    assert wide.delta_images == Delta()  # no predictions


def test_no_difference_can_be_a_result():
    runs = [a_run("bypass=none", seed, 0.9 + 0.01 * seed) for seed in range(5)]
    runs += [a_run("bypass=simple", seed, 0.9 + 0.01 * seed + (-1) ** seed * 0.0002) for seed in range(5)]
    comparison = compare("bypass", "digits", "bypass=none", runs)
    assert "no difference of 0.5 points or more: bypass=simple" in wording.answer(comparison)
    assert any(text.startswith("≈ no difference of 0.5 points or more") for text in wording.footnotes(comparison))
    strict = compare("bypass", "digits", "bypass=none", runs, margin=0.0001)
    assert "no difference of" not in wording.answer(strict)


def test_each_row_is_compared_with_the_one_that_differs_in_what_is_contrasted():
    top1 = {("none", "none"): 0.9, ("none", "simple"): 0.92, ("batch", "none"): 0.8, ("batch", "simple"): 0.85}
    runs = [
        a_run(f"norm={norm},bypass={bypass}", seed, value + 0.01 * seed)
        for (norm, bypass), value in top1.items()
        for seed in range(3)
    ]
    rows = {row.name: row for row in compare("norm", "digits", "bypass=none", runs).rows}
    assert [name for name, row in rows.items() if row.is_baseline] == [
        "norm=none,bypass=none",
        "norm=batch,bypass=none",
    ]
    assert rows["norm=batch,bypass=simple"].baseline == "norm=batch,bypass=none"
    assert [rows[f"norm={norm},bypass=simple"].delta.mean for norm in ("none", "batch")] == pytest.approx([0.02, 0.05])
    full = {row.name: row for row in compare("norm", "digits", "norm=none,bypass=none", runs).rows}
    assert full["norm=batch,bypass=simple"].delta.mean == pytest.approx(-0.05)
    assert sum(row.is_baseline for row in full.values()) == 1


def test_a_plan_says_what_its_seeds_can_show():
    text = wording.planned_power(3, 0.005)
    assert "differences of 3.3 standard deviations or more" in text and "0.5 points where those deviate by 0.15" in text
    assert "by 0.25, 0.5 or 1 points, it takes 5, 10 or 34 seeds" in text
    assert "no interval" in wording.planned_power(1, 0.005)


def test_evidence_of_nothing_is_empty():
    assert gather([], margin=0.005) == [] and Evidence().is_equivalent is False
