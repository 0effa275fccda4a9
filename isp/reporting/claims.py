"""The claims of the paper that studies of this package can test, and the rule by which each is decided.

This is the only place where a claim, its measure and its thresholds are defined: `isp.reporting.evidence` makes the
verdict table, its legend included, from `CLAIMS`. A claim names variants by their role, see `evidence.role_of`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MARGIN = 1.0
"""Points by which two scores may differ and still count as level."""
FRACTION = 0.5
"""Largest share of the cost of another method that is a fraction of it."""
AGREEMENT = 0.5
"""Least Kendall's tau of two orders that agree: three of four pairs are in the same order."""

VARIED = ("protocol_bert_cola_fast", "protocol_bert_mrpc_fast", "regime_mnist_fast", "regime_mnist_slow")
"""Studies that decide no claim, because they repeat another study at a different learning rate.

Their dense run is as large as that of the study that they repeat, so its size does not tell which is nearer to the
paper.
"""

Verdict = Literal["reproduced", "not reproduced", "open"]
Measure = Literal["difference", "cost", "order"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim, what is measured to test it, and when it holds or fails.

    The claim is reproduced if the whole 95 % interval of the measure lies above `above`, or below `below`. If not, it
    is not reproduced if the whole interval lies beyond `fails`. Anything else is open.

    Attributes:
        statement: The claim in a few words.
        measure: "difference": test score of `variant` minus that of `reference`, in points; "cost": executed FLOPs of
            the former over those of the latter; "order": Kendall's tau of the order of methods with the paper's.
        variant: Role of a variant; empty for an order.
        reference: Role of the variant that it is compared with; empty for an order.
        published: Tables of the paper that have the same comparison, as `published.Published.source` names them.
        above: The measure must be above it.
        below: The measure must be below it.
        fails: The claim fails if the whole interval is on the far side; None: that of the paper's figure.
        at_published: Whether only the paper's sparsities of a task count.
    """

    statement: str
    measure: Measure = "difference"
    variant: str = ""
    reference: str = ""
    published: tuple[str, ...] = ()
    above: float | None = None
    below: float | None = None
    fails: float | None = None
    at_published: bool = False


CLAIMS = (
    Claim(
        statement="ISP is at least as good as lottery tickets (LTH) of the same sparsity",
        variant="isp",
        reference="lth",
        published=("table2", "table3"),
        above=-MARGIN,
        fails=0.0,
    ),
    Claim(
        statement="ISP costs a fraction of LTH",
        measure="cost",
        variant="isp",
        reference="lth",
        below=FRACTION,
        fails=FRACTION,
    ),
    Claim(
        statement="Denoisers help: ISP against the same rounds without look-aheads",
        variant="isp",
        reference="isp_without_denoiser",
        published=("table4",),
        above=0.0,
    ),
    Claim(
        statement="Denoisers help when they average magnitudes (`isp_mean`, ours, chosen on two of these tasks)",
        variant="isp_mean",
        reference="isp_without_denoiser",
        above=0.0,
        fails=0.0,
    ),
    Claim(
        statement="More denoisers hardly help: N = 16 against N = 4",
        variant="denoisers=16",
        reference="denoisers=4",
        published=("table5",),
        below=MARGIN,
        fails=MARGIN,
    ),
    Claim(
        statement="Longer look-aheads hardly help: C = 50 against C = 10",
        variant="look_ahead=50",
        reference="look_ahead=10",
        published=("table7",),
        below=MARGIN,
        fails=MARGIN,
    ),
    Claim(
        statement="Longer look-aheads hardly help: C = 200 against C = 50",
        variant="look_ahead=200",
        reference="look_ahead=50",
        published=("table7",),
        below=MARGIN,
        fails=MARGIN,
    ),
    Claim(
        statement="Instant Model Soup is near a greedy soup",
        variant="instant_model_soup",
        reference="greedy_soup",
        published=("table6",),
        above=-MARGIN,
        fails=-MARGIN,
    ),
    Claim(
        statement="ISP keeps the dense score at the paper's sparsities",
        variant="isp",
        reference="dense",
        published=("table2", "table3"),
        above=-MARGIN,
        fails=-MARGIN,
        at_published=True,
    ),
    Claim(
        statement="Methods rank much as in Table 2, random masks aside",
        measure="order",
        published=("table2",),
        above=AGREEMENT,
        fails=AGREEMENT,
    ),
)


def decide(claim: Claim, low: float, high: float, published: float | None) -> Verdict:
    """Return the verdict on a claim from the interval of its measure.

    Args:
        claim: The claim.
        low: Lower end of the interval.
        high: Upper end.
        published: The paper's figure, which counts where the claim has no limit of its own at which it fails.
    """
    if (claim.above is not None and low > claim.above) or (claim.below is not None and high < claim.below):
        return "reproduced"
    fails = claim.fails if claim.fails is not None else published
    if fails is not None and (low > fails if claim.below is not None else high < fails):
        return "not reproduced"
    return "open"


def rule(claim: Claim) -> str:
    """Describe the rule of a claim in words."""
    unit = {"difference": " points", "cost": " of the cost", "order": ""}[claim.measure]

    def limit(value: float | None) -> str:
        return "the paper's figure" if value is None else f"{value:g}{unit}".replace("-", "−")

    holds, fails = ("below", "above") if claim.below is not None else ("above", "below")
    threshold = limit(claim.below if claim.below is not None else claim.above)
    return f"reproduced {holds} {threshold}, not reproduced {fails} {limit(claim.fails)}"
