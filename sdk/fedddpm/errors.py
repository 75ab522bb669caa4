"""What can go wrong for a user of the SDK.

    FedDDPMError
    ├── ConfigError       an argument or a setting makes no sense
    ├── DataError         the images cannot be used
    ├── ModelError        weights do not fit the network
    ├── CheckpointError   a file could not be written or read back
    ├── TrainingError     training went astray (not a number, for instance)
    ├── PolicyError       the institution's own policy forbids what the aggregator asks
    │   ├── WentBackError     the aggregator speaks of something older than what is known here
    │   └── FalseSumFoundError  the aggregator signed a sum that is not that of what was sent
    ├── TransportError    the aggregator cannot be reached or answered nonsense
    │   ├── UnreachableError  no answer for as long as this institution waits
    │   └── ProblemError      a problem document, with its status and code
    │       ├── NotEnrolledError  the roster does not hold this institution's key
    │       └── ClockError        the clocks differ too much
    └── StateError        the institution's state folder is unusable
        └── SecondClientError  somebody else takes part with this institution's identity

The finer ones live beside what raises them: in ``transport.problems``, ``rounds.rollback_check`` and
``rounds.sum_check``.
Everything a user can cause or can mend is one of these; any other exception is a defect of this package.
"""

from fedddpm_protocol.untrusted.plain_text import message


class FedDDPMError(Exception):
    """Base of all errors shown to users: what happened, then what to do about it.

    Both may repeat what came from elsewhere or was given in the wrong place, so they are made plain and hold no key.

    >>> str(FedDDPMError("the folder /data is empty", "Put PNG or JPEG files there"))
    'the folder /data is empty. Put PNG or JPEG files there'
    """

    def __init__(self, happened: str, advice: str = "") -> None:
        self.happened = message(happened).rstrip(".")
        self.advice = message(advice)
        super().__init__(f"{self.happened}. {self.advice}" if advice else message(happened))

    def __reduce__(self) -> tuple[type["FedDDPMError"], tuple[str, str]]:
        return type(self), (self.happened, self.advice)


class ConfigError(FedDDPMError):
    """An argument or a setting makes no sense."""


class DataError(FedDDPMError):
    """The images cannot be used."""


class ModelError(FedDDPMError):
    """Weights do not fit the network, or the network cannot be built."""


class CheckpointError(FedDDPMError):
    """A file could not be written, or could not be read back."""


class TrainingError(FedDDPMError):
    """Training went astray."""


class PolicyError(FedDDPMError):
    """The institution's own policy forbids what the aggregator asks."""


class TransportError(FedDDPMError):
    """The aggregator cannot be reached, or refused, or answered nonsense."""


class StateError(FedDDPMError):
    """The institution's state folder is unusable."""
