"""The facade: one object that takes part in a federation.

from fedddpm import Client

Client(
    aggregator_url="https://aggregator.example.org",
    identity="hospital-a.key",
    federation_root="root.pub",
    data="/srv/images",
    state_dir="state",
).participate()
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from textwrap import indent
from typing import Self, TypedDict, Unpack

from fedddpm import errors
from fedddpm.compute.device import pick_device, use_cores
from fedddpm.config import (
    ClientConfig,
    LearningOptions,
    LocalPolicyOptions,
    MetricsOptions,
    NetworkOptions,
    ObserveOptions,
    SamplesOptions,
    Setting,
    described_settings,
    load_config,
)
from fedddpm.data.grey_summary import grey_line
from fedddpm.data.image_set import split_holdout
from fedddpm.data.opening import open_images
from fedddpm.generation.round_pictures import RoundPictures
from fedddpm.identity import Identity, load_public_key
from fedddpm.monitoring.metrics_server import serving_metrics
from fedddpm.monitoring.observers import open_observers, require_packages
from fedddpm.monitoring.reporter import Reporter, make_reporter
from fedddpm.monitoring.vitals import LiveVitals, sdk_version
from fedddpm.rounds.institution import Institution
from fedddpm.rounds.participation import Participation
from fedddpm.rounds.round_book import RoundBook
from fedddpm.rounds.summary import RoundSummary
from fedddpm.state.folder import StateFolder
from fedddpm.training.distributed import Place, follow, open_distributed
from fedddpm.transport.connection import Connection
from fedddpm.transport.endpoints import FederationApi
from fedddpm_protocol.errors import LocalProtocolError, ProtocolError
from fedddpm_protocol.errors import PolicyError as RefusedByPolicy

_LOG = logging.getLogger("fedddpm")
_CALL = "Nothing was sent that could harm you. If it happens again, call the federation's coordinator"
_DISAGREE = "Nothing was sent. Call the federation's coordinator; if you agree to it, change your [policy]"


class ClientSettings(TypedDict, total=False):
    """What ``Client`` takes by name beside what it cannot do without: the settings of ``ClientConfig``."""

    member_id: str | None
    device: str
    holdout: float
    image_size: int | None
    channels: int | None
    labels: str | None
    cache: bool | str | Path
    data_root: str | Path | None
    seed: int
    limit: int | None
    after_restore: bool
    policy: LocalPolicyOptions | None
    learning: LearningOptions | None
    network: NetworkOptions | None
    stand_by: bool
    metrics: MetricsOptions | None
    samples: SamplesOptions | None
    observe: ObserveOptions | None


class Client:
    """One institution in one federation. Everything is checked when it is made, but for the aggregator itself.

    Args:
        aggregator_url: where the aggregator listens.
        identity: this institution's key file (``fedddpm keygen``).
        federation_root: the root's public key, or a file that holds it: the one thing that must be right.
        data: ``fashion-mnist``, ``cifar10``, ``celeba``, a folder of images or an .npz file.
        state_dir: a folder of its own for everything that must survive a restart.
        progress: draw bars; None: only on a terminal.
        settings: everything else by name, listed below with its default.

    Raises:
        ConfigError: a setting is wrong or unknown. DataError: the images cannot be used.
    """

    def __init__(
        self,
        *,
        aggregator_url: str,
        identity: str | Path,
        federation_root: str | Path | bytes,
        data: str | Path,
        state_dir: str | Path,
        progress: bool | None = None,
        **settings: Unpack[ClientSettings],
    ) -> None:
        if "log_format" in settings:
            raise errors.ConfigError("log_format is a setting of the command", "A program sets up its own logging")
        needed = {
            "aggregator_url": aggregator_url,
            "identity": identity,
            "federation_root": load_public_key(federation_root).hex(),
            "data": data,
            "state_dir": state_dir,
        }
        self._set_up(load_config(overrides={**needed, **settings}), progress)

    @classmethod
    def from_config(
        cls, path: str | Path | None, overrides: Mapping[str, Setting] | None = None, progress: bool | None = None
    ) -> Self:
        """A client from a TOML file; ``overrides`` win over the file."""
        client = cls.__new__(cls)
        client._set_up(load_config(None if path is None else Path(path), overrides), progress)
        return client

    @classmethod
    @contextmanager
    def watched(cls, config: ClientConfig, progress: bool | None = None) -> Iterator[Self]:
        """A client whose metrics are there while it opens its images already, and until the block ends."""
        vitals = LiveVitals()
        with _metrics(config, vitals):
            client = cls.__new__(cls)
            client._set_up(config, progress, vitals)
            yield client

    def _set_up(self, config: ClientConfig, progress: bool | None, vitals: LiveVitals | None = None) -> None:
        use_cores()
        self._place, self._progress, self._vitals = Place.here(), progress, vitals
        identity = Identity.load(config.identity) if self.leads else None
        root = load_public_key(config.federation_root)
        self._device = pick_device(self._place.device(config.device))
        if identity is not None:
            require_packages(config.observe)
            _say_who_starts(identity, config.member_id or identity.member_id, str(self._device), vitals)
        images = open_images(
            config.data,
            image_size=config.image_size,
            channels=config.channels,
            root=config.data_root or Path("data"),
            limit=config.limit,
            labels=config.labels,
            cache=config.cache,
        )
        self._images = split_holdout(images, config.holdout, config.seed)
        self._institution: Institution | None = None
        if identity is not None:
            self._institution = Institution(
                config=config,
                identity=identity,
                member_id=config.member_id or identity.member_id,
                root_public_key=root,
                images=self._images,
                device=self._device,
            )

    @property
    def leads(self) -> bool:
        """False in the processes of torchrun that only help to train: all but that of rank 0."""
        return self._place.leads

    def __repr__(self) -> str:
        us = self._institution
        return "Client(helps to train)" if us is None else f"Client({us.member_id!r} at {us.config.aggregator_url})"

    def participate(
        self, rounds: int | None = None, on_round: Callable[[RoundSummary], None] | None = None
    ) -> list[RoundSummary]:
        """Take part until ``rounds`` rounds have ended (None: until the run ends); one summary for each.

        ``on_round`` is told as soon as a round has ended; without it the summary is shown beside the bars. Under
        torchrun every process calls this; all but that of rank 0 only help to train and return nothing.

        May be killed at any moment and called again: it goes on where it was.

        Raises:
            FedDDPMError: what happened and what to do about it; see ``fedddpm.errors``.
        """
        with _explained(), open_distributed(self._place, self._device, self._images[0]) as share:
            if self._institution is not None:
                return self._take_part(replace(self._institution, share=share), rounds, on_round)
            follow(share, self._images[0], self._device)
        return []

    def _take_part(
        self, us: Institution, rounds: int | None, on_round: Callable[[RoundSummary], None] | None
    ) -> list[RoundSummary]:
        config, vitals = us.config, self._vitals or LiveVitals()
        with (
            _metrics(config, vitals) if self._vitals is None else nullcontext(),
            StateFolder(config.state_dir, us.root_public_key, us.member_id) as state,
            open_observers(config.observe, state.path, us.member_id) as observers,
            make_reporter(self._progress, vitals) as reporter,
            Connection(
                config.aggregator_url,
                us.identity,
                us.member_id,
                config.network,
                on_outage=reporter.outage,
                on_warning=reporter.warning,
                on_traffic=reporter.moved,
                on_piece=reporter.heard,
            ) as connection,
        ):
            _introduce(us, reporter)
            tell = on_round or (lambda summary: reporter.show(str(summary)))
            painter = RoundPictures(state, config.samples, us.device, reporter) if config.samples.count else None
            book = RoundBook(state, us.member_id, reporter, observers, painter)
            return Participation(us, state, FederationApi(connection), reporter, tell, book).run(rounds)


Client.__doc__ = f"{Client.__doc__}\n    Settings by name:\n" + indent(
    described_settings(ClientSettings.__annotations__), " " * 8
)


def _metrics(config: ClientConfig, vitals: LiveVitals) -> AbstractContextManager[int | None]:
    """The metrics of this process, where it is the one that the aggregator sees."""
    return serving_metrics(config.metrics, vitals) if Place.here().leads else nullcontext()


def _say_who_starts(identity: Identity, member_id: str, device: str, vitals: LiveVitals | None) -> None:
    """For the log alone, before images are opened, which may take long."""
    fields = {"version": sdk_version(), "device": device, "institution": member_id, "key": identity.fingerprint}
    text = f"fedddpm {fields['version']} on {device}, {member_id} (key {identity.fingerprint})"
    _LOG.info(text, extra={"event": "started", "fields": fields})
    if vitals is not None:
        vitals.introduce(member_id, device)


def _introduce(us: Institution, reporter: Reporter) -> None:
    train, held = us.images
    greys = grey_line(train)
    reporter.vitals.introduce(us.member_id, str(us.device))
    reporter.notice(
        f"{us.member_id} (key {us.identity.fingerprint}): {len(train)} images to train on, {len(held)} held out,"
        f" on {us.device}" + (f" and {us.share.world - 1} more" if us.share.world > 1 else "") + f"; {greys.sentence}",
        "images",
        {"train": len(train), "held_out": len(held), **greys.fields},
    )
    if greys.concern:
        reporter.warning(greys.concern)
    if train.skipped:
        reporter.warning(train.left_out)
    if us.config.is_plain_http:
        reporter.warning("the aggregator's address is not https: who takes part, and when, can be read on the way")


@contextmanager
def _explained() -> Iterator[None]:
    """Turn refusals of the protocol into errors for users."""
    try:
        yield
    except RefusedByPolicy as error:
        raise errors.PolicyError(str(error), _DISAGREE) from error
    except LocalProtocolError as error:
        raise errors.PolicyError(str(error), "Nothing was sent") from error
    except ProtocolError as error:
        raise errors.TransportError(f"the aggregator or another member broke the protocol: {error}", _CALL) from error
