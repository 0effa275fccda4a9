import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from isp.errors import ConfigError
from isp.metrics import METRICS, allowed_metrics, majority, score, value_range

RNG = np.random.default_rng(0)
LOGITS, LABELS = RNG.normal(size=(50, 2)), RNG.integers(0, 2, 50)
VALUES, TARGETS = RNG.normal(size=(50, 1)), RNG.normal(size=50)


def test_by_hand() -> None:
    outputs = np.array([[2.0, 1.0], [0.0, 1.0], [0.0, 3.0], [5.0, 0.0]])  # predicts 0 1 1 0
    labels = np.array([0, 1, 0, 1])
    assert score("accuracy", outputs, labels) == 50
    assert score("f1", outputs, labels) == 50  # precision and recall one half
    assert score("matthews", outputs, labels) == 0
    assert score("pearson", np.array([1.0, 2, 3]), np.array([2.0, 4, 6])) == pytest.approx(100)
    assert score("spearman", np.array([1.0, 2, 9]), np.array([3.0, 2, 1])) == pytest.approx(-100)


def test_against_the_libraries() -> None:
    predicted = LOGITS.argmax(1)
    assert score("accuracy", LOGITS, LABELS) == pytest.approx(100 * sk.accuracy_score(LABELS, predicted))
    assert score("f1", LOGITS, LABELS) == pytest.approx(100 * sk.f1_score(LABELS, predicted))
    assert score("matthews", LOGITS, LABELS) == pytest.approx(100 * sk.matthews_corrcoef(LABELS, predicted))
    assert score("pearson", VALUES, TARGETS) == pytest.approx(100 * np.corrcoef(VALUES[:, 0], TARGETS)[0, 1])
    assert score("spearman", VALUES, TARGETS) == pytest.approx(100 * stats.spearmanr(VALUES[:, 0], TARGETS).statistic)


@pytest.mark.parametrize("name", METRICS)
def test_higher_is_better(name: str) -> None:
    if name in ("pearson", "spearman"):
        good, bad = TARGETS[:, None], -TARGETS[:, None]
        assert score(name, good, TARGETS) > score(name, VALUES, TARGETS) > score(name, bad, TARGETS)
    else:
        good = np.eye(2)[LABELS]
        assert score(name, good, LABELS) > score(name, LOGITS, LABELS) > score(name, 1 - good, LABELS)


@pytest.mark.parametrize("name", METRICS)
def test_scores_lie_within_the_range(name: str) -> None:
    """The best outputs and the worst ones reach its ends."""
    low, high = value_range(name)
    if name in ("pearson", "spearman"):
        ends = score(name, -TARGETS[:, None], TARGETS), score(name, TARGETS[:, None], TARGETS)
    else:
        good = np.eye(2)[LABELS]
        ends = score(name, 1 - good, LABELS), score(name, good, LABELS)
    assert ends == pytest.approx((low, high))


def test_unknown() -> None:
    with pytest.raises(ConfigError, match="unknown metric 'acuracy'; did you mean 'accuracy'"):
        score("acuracy", LOGITS, LABELS)


def test_majority_by_hand() -> None:
    labels = np.array([1, 1, 1, 0])
    assert majority("accuracy", labels, 2) == 75
    assert majority("matthews", labels, 2) == 0
    assert majority("f1", labels, 2) == pytest.approx(100 * 2 * 0.75 / 1.75)
    assert majority("f1", 1 - labels, 2) == pytest.approx(100 * 2 * 0.25 / 1.25)  # of the positive label, the rarer one
    assert majority("pearson", np.array([1.0, 2.0]), 1) == 0


def test_outputs_or_labels_that_are_all_the_same_correlate_with_nothing() -> None:
    for metric in ("pearson", "spearman"):
        assert score(metric, np.ones((4, 1)), np.arange(4.0)) == 0
        assert score(metric, np.arange(4.0)[:, None], np.ones(4)) == 0


def test_what_a_task_may_be_scored_by() -> None:
    assert allowed_metrics(0) == ("pearson", "spearman")
    assert set(allowed_metrics(2)) - set(allowed_metrics(3)) == {"f1"}
    assert {*allowed_metrics(0), *allowed_metrics(2)} == METRICS.keys()
