"""Keeps an institution from being most of what it is summed with: warns, and stops before it contributes once more.

The last known share lies in the state folder, written before the round that it is of is left behind: a restart meets
the same stop. It holds for its run: another one has other settings.
"""

from __future__ import annotations

from collections.abc import Callable

from fedddpm.config import LocalPolicyOptions
from fedddpm.errors import PolicyError
from fedddpm.rounds.guards.own_share import OwnShare, own_share
from fedddpm.state.folder import StateFolder
from fedddpm.state.report import OWN_SHARE
from fedddpm.updates.contribution import scaled_pieces
from fedddpm.updates.local_update import LocalUpdate
from fedddpm_protocol.agreement.model_layout import Vector
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.encoding.encoder import weight_units

_ASK = "ask the federation's coordinator for a run with equal weights, or with a lower clip norm"


class ShareGuard:
    """The shares of one institution, and what its policy says to them."""

    def __init__(
        self, state: StateFolder, member: str, policy: LocalPolicyOptions, warn: Callable[[str], None]
    ) -> None:
        self._state, self._member, self._policy, self._warn = state, member, policy, warn

    def measure(
        self, spec: RoundSpec | None, result: RoundResult, update: LocalUpdate | None, base: Vector, model: Vector
    ) -> None:
        """Remember the own share in a round that moved the shared parts from ``base`` to ``model``.

        Nobody knows it without the specification and the own update.
        """
        if spec is None or update is None:
            return
        weight, pieces = weight_units(update.samples, spec), scaled_pieces(spec, update.sent)
        share = own_share(spec, result, self._member, weight, pieces, base, model)
        if share is not None:
            self._state.remember(OWN_SHARE, share.to_json())
            if spec.turn:
                self._state.remember(_in_turn(spec.turn), share.to_json())

    def after(self, result: RoundResult) -> OwnShare | None:
        """The own share in a result that was taken, None where it is not known; warns where it is large."""
        share = self._last(result.run)
        if share is None or share.round != result.round:
            return None
        if share.largest > self._policy.warn_share:
            self._warn(
                f"this institution's update is {_percent(share.largest)} of the mean of round {result.round + 1}"
                f" (cosine {share.whole.cosine:.2f}), above warn_share ({_percent(self._policy.warn_share)}): whoever"
                f" sees the mean sees little else, and the others' images count for little; {_ASK}"
            )
        return share

    def require_small(self, spec: RoundSpec) -> None:
        """PolicyError where the round of ``spec`` would give the own update a share above the policy's.

        That is the last known one of the run, where parts take turns that of the part whose turn it is, as it would
        have been within the clip norm of ``spec``: a share that the clip norm is about to mend stops nobody.
        """
        share = self._last(spec.run, _in_turn(spec.turn) if spec.turn else OWN_SHARE)
        if share is None or share.largest <= self._policy.max_share:
            return
        next_time = share.largest_at(spec.clip_norm)
        if next_time > self._policy.max_share:
            raise PolicyError(
                f"this institution's update was {_percent(share.largest)} of the mean of round {share.round + 1}, and"
                f" would be {_percent(next_time)} within the clip norm {spec.clip_norm:.3g} of round {spec.round + 1};"
                f" the policy allows {_percent(self._policy.max_share)} (max_share). Nothing more was sent",
                f"{_ASK[0].upper()}{_ASK[1:]}; or raise max_share and start again, if the mean may show your update",
            )

    def _last(self, run: str, kept_as: str = OWN_SHARE) -> OwnShare | None:
        stored = self._state.fact(kept_as)
        share = None if stored is None else OwnShare.from_json(stored)
        return share if share is not None and share.run == run else None


def _in_turn(part: str) -> str:
    """The fact that holds the newest share in a part that is summed in turn."""
    return f"{OWN_SHARE}:{part}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
