"""Why an attempt failed or a run waits, in words for the person who runs the federation, and what to do about it."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Advice:
    """What a recorded reason means and what follows from it."""

    means: str
    to_do: str


_NOTHING = "Nothing to do: another attempt at the round starts by itself."
_AGAIN = "Another attempt starts by itself."
_RULES: tuple[tuple[re.Pattern[str], Advice], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), Advice(means, to_do))
    for pattern, means, to_do in (
        (
            r"spent on the sum of",
            "Members have answered for a sum over this model before, and never help to open a second one over other "
            "members: from the difference an update could be read.",
            "Bring the named members back together, or follow the way out that the reason names.",
        ),
        (
            r"^waiting for members",
            "The round stays open and costs nobody anything; it begins as soon as enough institutions have joined.",
            "Ask the institutions that are not heard of to look at: fedddpm status.",
        ),
        (
            r"an alarm rang",
            "The run was started to be held when an alarm rings. The round is published; nothing more is trained.",
            "Ask the institutions what changed at home. Then let it go on (federation resume-run), or end it and start "
            "another one from a first model that is not the last one.",
        ),
        (
            r"is held|above the agreed|outside the agreed range|cannot sum to|not the .* that the disclosed",
            "The sum was opened but breaks the rules that all agreed on, so the model stays as it is. Nobody can tell "
            "whose update it was: single updates are masked for this server too.",
            "The run stands still until the root signs a newer roster. First ask every institution which program and "
            "settings it runs, and what its log says of its update's norm: a working program clips by itself. Where "
            "the roster names an auditor, members show it theirs (fedddpm open-update), and it finds whose it was "
            "(auditor judge). Who says that it was its own, or is found, leaves by a roster without it "
            "(federation roster remove) that releases the others "
            "(federation roster release). Never release by guess: two sums that differ by one institution show its "
            "update, also an honest one's. What shows nothing is another run: end this one, and start from another "
            "first model (fedddpm init-model --seed) without whoever is suspected, or by turns with halves of the "
            "federation that are large enough. The half whose round is held again has the spoiler in it.",
        ),
        (
            r"larger than its ring",
            "The updates grew faster than the ring of this attempt was made for; the sum is not used.",
            "Nothing to do: the next attempt travels once in 32 bits, where every sum fits.",
        ),
        (
            r"^shares ended with|keys, \d+ are needed",
            "Too few institutions sent their key shares in time. Nothing was uploaded.",
            f"{_AGAIN} If it fails again, look after those not heard of, or give a run more time (--shares-s).",
        ),
        (
            r"^masked ended with|updates arrived",
            "Too few institutions finished their upload in time. Nothing was opened; single uploads are deleted.",
            f"{_AGAIN} If it fails again, look after those not heard of, or give a run more time (--masked-s).",
        ),
        (
            r"^confirm ended with",
            "Too few institutions confirmed who is in the sum. Nothing was opened.",
            f"{_AGAIN} If it fails again, look after those not heard of, or give a run more time (--confirm-s).",
        ),
        (
            r"needed UNMASK answers came",
            "Too few institutions answered with what opens the sum. It stays closed for ever; those who answered go on "
            "only with the same members.",
            "Another attempt starts by itself and waits for them. Bring those not heard of back.",
        ),
        (
            r"^only \d+ members are left",
            "So many institutions restarted or left that the sum can no longer be opened.",
            f"{_AGAIN} If members keep restarting, look at their logs.",
        ),
        (
            r"^wrong shares",
            "The institution that is named broke the protocol; signed messages prove it, and every institution checks "
            "them. Nothing was opened.",
            f"{_AGAIN} The institution sits out the next ones by itself. Ask it to look at its machine and program; a "
            "newer roster admits it again, or takes it off (federation roster remove).",
        ),
        (
            r"the sum cannot be opened",
            "Too few of the answers hold shares that are as they were dealt. Who sent others is named and sits out.",
            f"{_AGAIN} If it happens again, the root can take the institution off the roster (federation roster "
            "remove).",
        ),
        (
            r"roster version \d+ (is in force|removes)",
            "A newer roster took effect in the middle of the attempt.",
            _NOTHING,
        ),
        (r"ended (by )?the (run|coordinator)|ended by|ended the run", "Somebody ended the run.", "Nothing to do."),
        (
            r"has paused the run",
            "No new attempt starts, no round closes its doors.",
            "Let it go on: federation resume-run.",
        ),
        (
            r"other parts of the round are over",
            "Too few institutions joined for this part. The other parts of the round were opened without it.",
            "Nothing to do: the part keeps its values and is trained again in the next round.",
        ),
        (
            r"enrol|n_min|min-cohort|must take part|too few to hide",
            "The roster has too few members for this run.",
            "Let the root sign a roster with more members and install it (federation install).",
        ),
        (
            r"damaged|does not match its (digest|checksum)|checksum",
            "A stored upload was damaged on this server's disk.",
            "Check disk and file system. Another attempt starts by itself.",
        ),
    )
)
_UNKNOWN = Advice(
    "The attempt ended without a sum. Nothing was opened.",
    f"{_AGAIN} The server's log has more around this time.",
)


def advice_on(reason: str) -> Advice:
    """What ``reason`` means and what to do; general words for one that is not known."""
    return next((advice for pattern, advice in _RULES if pattern.search(reason)), _UNKNOWN)
