"""Every way the protocol can refuse, as a type.

    ProtocolError
    ├── LocalProtocolError      this side asked for something it must not do
    │   ├── PhaseError              a message at the wrong time
    │   ├── PolicyError             the local policy does not allow it
    │   ├── SpentError              this base model and part already took part in another sum
    │   ├── TermsError              this base model was already trained on under other terms
    │   ├── EncodingError           values that do not fit the ring
    │   │   ├── NonFiniteError          NaN or infinity in an update
    │   │   └── RingOverflowError       a value outside the agreed range
    │   └── MaskReuseError          a chunk would be masked twice with different content
    └── PeerProtocolError       the other side, or another member, sent something wrong (``blame`` names it)
        ├── MalformedError          wrong length, unknown field, trailing bytes
        ├── SignatureError          a signature does not verify
        ├── UnknownMemberError      an id that is not in the roster or the cohort
        ├── DuplicateError          the same id or ephemeral key twice
        ├── ConflictError           a second, different message for the same step
        ├── RosterError             the roster is wrong
        │   └── OlderRosterError        it went back
        ├── CharterError            a run's charter is wrong, or a round does not follow from it
        │   └── OlderCharterError       it went back
        ├── SpecError               the round specification is wrong or not the agreed one
        │   ├── StaleRosterError        it was made for a newer roster than the one at hand
        │   └── StaleSpecError          it was made for an older roster than the one at hand
        ├── OtherVersionError       it was signed under another version of the protocol
        ├── CohortTooSmallError     fewer members than the threshold or the minimum
        ├── CohortError             own message missing or altered in the cohort
        ├── ShareError              a share item does not open
        │   ├── ReflectedShareError     it is for or from another
        │   └── AccusationError         it is not what its dealer committed to
        ├── SurvivorsError          survivors that are no subset, or without or against the own upload
        ├── ReleaseError            a release that is unknown or already used
        ├── CommitmentError         too few shares are there that match their commitments
        │   └── MisdealtError           they all do, and do not make up the secret
        ├── EvidenceError           evidence that convicts nobody
        ├── OtherUpdateError        an update that was opened to the auditor is not what was sent
        └── ResultError             a published result that does not follow from what was opened
            ├── WrappedSumError         the sum was too large for its ring
            └── FalseSumError           it is not the sum of what was sent

``code`` is the stable name that the aggregator puts into problem documents.
"""

from __future__ import annotations

from typing import ClassVar

from fedddpm_protocol.untrusted.plain_text import plain


class ProtocolError(Exception):
    """Base of all protocol refusals; the message says what happened and what it means.

    It often repeats what the other side sent, so it is made plain here (see ``untrusted.plain_text``).
    """

    code: ClassVar[str] = "protocol-error"

    def __init__(self, text: str = "") -> None:
        super().__init__(plain(text))


class LocalProtocolError(ProtocolError):
    """This side asked for something that would break its own guarantees."""

    code = "local-protocol-error"


class PhaseError(LocalProtocolError):
    """A step was called that the state machine does not allow now."""

    code = "wrong-phase"


class PolicyError(LocalProtocolError):
    """The institution's local policy forbids what the federation asks."""

    code = "policy"


class SpentError(LocalProtocolError):
    """This base model and part already contributed to a sum over other survivors."""

    code = "base-spent"


class TermsError(LocalProtocolError):
    """This base model was already trained on under other terms."""

    code = "other-terms"


class EncodingError(LocalProtocolError):
    """Values cannot be represented in the ring."""

    code = "encoding"


class NonFiniteError(EncodingError):
    """An update holds NaN or infinity."""

    code = "non-finite-update"


class RingOverflowError(EncodingError):
    """A value lies outside the range that the sum can hold."""

    code = "ring-overflow"


class MaskReuseError(LocalProtocolError):
    """The same mask would cover two different contents, which would reveal their difference."""

    code = "mask-reuse"


class PeerProtocolError(ProtocolError):
    """Somebody else sent something wrong.

    ``blame`` is the member id or ``"aggregator"`` when it can be told, else None.
    """

    code = "peer-protocol-error"

    def __init__(self, message: str, blame: str | None = None) -> None:
        super().__init__(message if blame is None else f"{message} (from {blame})")
        self.blame = blame


class MalformedError(PeerProtocolError):
    """Bytes of the wrong length or form."""

    code = "malformed"


class SignatureError(PeerProtocolError):
    """A signature does not verify under the expected key."""

    code = "bad-signature"


class UnknownMemberError(PeerProtocolError):
    """An id that is not a member of the roster or of the cohort."""

    code = "unknown-member"


class DuplicateError(PeerProtocolError):
    """The same id or the same ephemeral key appears twice."""

    code = "duplicate"


class ConflictError(PeerProtocolError):
    """A second message for a step differs from the first."""

    code = "conflicting-message"


class RosterError(PeerProtocolError):
    """A roster that is not valid under the pinned root key or its own rules."""

    code = "roster"


class OlderRosterError(RosterError):
    """A roster with a lower version than one already seen."""

    code = "older-roster"


class CharterError(PeerProtocolError):
    """A charter that is not valid, or a round that does not follow from its run's charter."""

    code = "charter"


class OlderCharterError(CharterError):
    """A charter with a lower number than one already seen, or another one with the same number."""

    code = "older-charter"


class SpecError(PeerProtocolError):
    """A round specification that is wrong, unsigned or against what was agreed."""

    code = "spec"


class StaleRosterError(SpecError):
    """A specification made for a newer roster than the one at hand: fetch the roster anew."""

    code = "stale-roster"


class StaleSpecError(SpecError):
    """A specification made for an older roster than the one at hand: wait for the next attempt."""

    code = "stale-spec"


class OtherVersionError(PeerProtocolError):
    """Something that was signed under another version of the protocol."""

    code = "other-version"


class CohortTooSmallError(PeerProtocolError):
    """Fewer members than the threshold or the minimum cohort allow."""

    code = "cohort-too-small"


class CohortError(PeerProtocolError):
    """The cohort does not hold this institution's own JOIN as it was sent."""

    code = "cohort"


class ShareError(PeerProtocolError):
    """A share item that does not verify or decrypt."""

    code = "share"


class ReflectedShareError(ShareError):
    """A share item whose sender or addressee is not the one it must be."""

    code = "reflected-share"


class AccusationError(ShareError):
    """Shares that are not what their dealers committed to; the machine has the accusation that is to be sent."""

    code = "accusation"


class SurvivorsError(PeerProtocolError):
    """A survivor list this institution cannot confirm."""

    code = "survivors"


class ReleaseError(PeerProtocolError):
    """A release of a spent base model that is not in the roster or was used before."""

    code = "release"


class CommitmentError(PeerProtocolError):
    """Too few shares that are as their dealers committed to."""

    code = "commitment"


class MisdealtError(CommitmentError):
    """Shares that are all as committed and do not make up the secret; ``blame`` is their dealer."""

    code = "misdealt"


class EvidenceError(PeerProtocolError):
    """Messages that do not show what they should, or not from this session."""

    code = "evidence"


class OtherUpdateError(PeerProtocolError):
    """A member showed the auditor other words than those that it sent under its mask."""

    code = "other-update"


class ResultError(PeerProtocolError):
    """A published result that does not follow from what was opened."""

    code = "result"


class WrappedSumError(ResultError):
    """An opened sum so large for its ring that coordinates have wrapped around: it is not used."""

    code = "wrapped-sum"


class FalseSumError(ResultError):
    """The signed result names a sum that is not that of the uploads under the survivors' confirmation."""

    code = "false-sum"
