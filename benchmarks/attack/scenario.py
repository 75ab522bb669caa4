"""Every attack that was carried out, as benchmarks, documents and tests name it.

The tables of docs/results are written by benchmarks with these names, the table of SECURITY.md has a row for each that
is an attack, and ``tests/adversary`` plays each of them, so that no figure stands for an attack that nobody can repeat.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scenario:
    """One attack, or what attacks are measured against."""

    name: str  # in the tables of docs/results
    tried: str  # its row in SECURITY.md, word for word; empty where it is no attack
    noticed: str  # who notices it, where the defence is on; empty: nobody
    figure: str  # what it leaked, as a number


_INSTITUTION = "each institution that has trained on the base model"
_COSINE = "cosine of the sum with the victim's update"
_DIFFERENCE = "cosine of the difference of both sums with the victim's update"
_IMAGES = "mean correlation of images by name"
_MATCHED = "mean correlation of images with their best match"
_SHARE = "share of the mean that is one institution's"
_BOUNDS = "the same within ordinary bounds: learning rate 1e-4, or one step"

HONEST = Scenario("the same terms for all", "", "", _COSINE)
NOTHING = Scenario(
    "others at learning rate 1e-30",
    "Others are asked for a training that learns nothing (learning rate 1e-30), the victim has trained for an attempt"
    " before",
    _INSTITUTION,
    _COSINE,
)
LITTLE = Scenario("others at learning rate 1e-4", _BOUNDS, _INSTITUTION, _COSINE)
ONE_STEP = Scenario("others for one step", _BOUNDS, _INSTITUTION, _COSINE)
AGAIN = Scenario(
    "two sums, victim trained again between",
    "Two sums over the same survivors, the victim is offered another run in between",
    _INSTITUTION,
    _DIFFERENCE,
)
REPEATS = Scenario(
    "repeats the draws",
    "Twelve images of three institutions out of one secure sum of one step on a crafted first model, by an adversary"
    " who repeats the institutions' draws",
    "",
    _IMAGES,
)
SOLVES = Scenario(
    "solves for the noise", "the same, by one who solves for the draws together with the images", "", _MATCHED
)
LARGE = Scenario(
    "one large institution",
    "A hospital with 1,600 images among two with 100",
    "the institution that is most of the mean",
    _SHARE,
)
EQUALS = Scenario("three equals", "", "", _SHARE)

CRAFTED = Scenario(
    "crafted first model",
    "One image of each of three institutions out of one sum: one step on a first model that the aggregator made, asked"
    " of real clients by a lying server",
    "each institution, before it trains",
    _IMAGES,
)
PLANTED = Scenario(
    "planted by a false sum",
    "the same from a first model of a seed: after an honest round a false sum plants the trap",
    "each institution, before it trains in the next round",
    _IMAGES,
)
FLIPPED = Scenario(
    "flipped update",
    "One of four sends its update the other way round, as long as the clip norm lets it be",
    "the aggregator and each institution, of three spoiled rounds; not who it was",
    "mean held-out loss",
)
FALSE_SUM = Scenario(
    "false sum",
    "The aggregator publishes and signs a sum that nobody sent, within the clip norm",
    "each institution that draws a false chunk",
    "institutions that train on it",
)
UNCLIPPED = Scenario(
    "not clipped",
    "One of four sends an update a thousand times as large as it may be",
    "the aggregator, which holds the round; the auditor, whose update it was",
    "rounds that the others lose",
)
WRONG_SHARES = Scenario(
    "wrong shares",
    "One of four deals shares that are not as committed, or of another secret, or reveals others than it was dealt",
    "who is dealt them, and the aggregator; each institution checks the evidence",
    "attempts that it costs",
)

MEASURED = (HONEST, NOTHING, LITTLE, ONE_STEP, AGAIN, REPEATS, SOLVES, LARGE, EQUALS)  # by benchmarks
PLAYED = (
    CRAFTED,
    PLANTED,
    FLIPPED,
    FALSE_SUM,
    UNCLIPPED,
    WRONG_SHARES,
)  # on real clients, or in their rounds, by tests
SCENARIOS = (*MEASURED, *PLAYED)
