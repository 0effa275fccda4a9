"""Metrics of the benchmark, in percent, computed by scikit-learn and SciPy; higher is better for all of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from isp.errors import ConfigError, unknown


def accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of examples whose largest logit is that of the label. Outputs (n, classes), labels (n,)."""
    return float((outputs.argmax(axis=1) == labels).mean())


def f1(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Return the F1 score of class 1 of two. Outputs (n, 2), labels (n,)."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, outputs.argmax(axis=1)))


def matthews(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Return the Matthews correlation of predicted and true classes. Outputs (n, classes), labels (n,)."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, outputs.argmax(axis=1)))


def pearson(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Return the Pearson correlation, or 0 if all outputs or labels are equal. Outputs (n,) or (n, 1), labels (n,)."""
    from scipy.stats import pearsonr

    if np.ptp(outputs) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(pearsonr(outputs.reshape(-1), labels).statistic)


def spearman(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Return the Spearman rank correlation, or 0 if all outputs or labels are equal.

    Outputs (n,) or (n, 1), labels (n,).
    """
    from scipy.stats import spearmanr

    if np.ptp(outputs) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(spearmanr(outputs.reshape(-1), labels).statistic)


def majority(metric: str, labels: np.ndarray, num_outputs: int) -> float:
    """Return the baseline of a metric, in percent: always predicting the label that scores best, or the mean.

    For accuracy that is the most frequent label, for F1 the positive one, even if it is rare. Correlations with a
    constant are 0 here, as Matthews' is by convention.
    """
    if num_outputs == 1:
        return 0.0
    label = 1 if metric == "f1" else np.bincount(labels, minlength=num_outputs).argmax()
    return score(metric, np.broadcast_to(np.eye(num_outputs)[label], (len(labels), num_outputs)), labels)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    metric.__name__: metric for metric in (accuracy, f1, matthews, pearson, spearman)
}


CORRELATIONS = ("matthews", "pearson", "spearman")
"""Metrics whose lowest value is -100 %; that of the others is 0."""


def value_range(metric: str) -> tuple[float, float]:
    """Return the lowest and the highest value of a metric, in percent."""
    return (-100.0 if metric in CORRELATIONS else 0.0), 100.0


def allowed_metrics(num_classes: int) -> tuple[str, ...]:
    """Return the metrics for a number of classes; 0: for a regression."""
    if num_classes == 0:
        return ("pearson", "spearman")
    return ("accuracy", "matthews", "f1") if num_classes == 2 else ("accuracy", "matthews")


def score(metric: str, outputs: np.ndarray, labels: np.ndarray) -> float:
    """Return a metric by name, in percent.

    Raises:
        ConfigError: If the metric is unknown.
    """
    if metric not in METRICS:
        raise ConfigError(unknown("metric", metric, METRICS))
    return 100 * METRICS[metric](outputs, labels)
