"""What an operator can set, read once at process start from arguments and ``FEDDDPM_AGGREGATOR_*`` variables."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from fedddpm_protocol.untrusted.host_names import name_of
from fedddpm_protocol.untrusted.redaction import shown
from fedddpm_protocol.wire.api import SIGNATURE_MAX_AGE_S

KEY_FILE = "server.key"
PREFIX = "FEDDDPM_AGGREGATOR_"  # of the variables


class Settings(BaseSettings):
    """Settings of one aggregator process."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,  # as the options do with their variables
        extra="forbid",
        hide_input_in_errors=True,  # a wrong URL holds a password
    )

    data: Path = Field(description="directory of the signing key, the vectors and, by default, the database")
    server_key: Path | None = Field(default=None, description="file of the signing key; DATA/server.key")
    root_key: str | None = Field(
        default=None, description="the root's public key, 64 hex digits or a file of them; serve refuses another one"
    )
    database_url: str | None = Field(default=None, description="SQLAlchemy URL; a SQLite file in the data directory")
    blobs: str | None = Field(default=None, description="directory or s3://bucket/prefix; DATA/blobs")
    keep_rounds: int = Field(default=0, ge=0, description="rounds of a run whose vectors are kept; 0: all")
    keep_uploads_s: float = Field(
        default=86_400.0,
        ge=0,
        allow_inf_nan=False,
        description="seconds that a run's last masked uploads are kept for checks of the sum; 0: no sum can be checked",
    )
    host: str = "127.0.0.1"
    port: int = Field(default=8750, ge=0, le=65535)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    max_message_bytes: int = Field(default=2 * 2**20, gt=0, description="largest JSON request")
    max_chunk_bytes: int = Field(default=4 * 2**20, gt=0, description="largest chunk of a masked vector")
    signature_max_age_s: int = Field(default=SIGNATURE_MAX_AGE_S, gt=0, description="how old a signed request may be")
    signature_max_ahead_s: int = Field(default=60, ge=0, description="how far a client's clock may be ahead")
    page: Literal["auto", "on", "off"] = Field(
        default="auto", description="the page at /; auto: on a loopback address, or with a password"
    )
    page_password_file: Path | None = Field(default=None, description="file with the page's password (user operator)")
    max_buffered_bytes: int = Field(default=64 * 2**20, gt=0, description="bodies of requests in memory together")
    max_model_bytes: int = Field(default=2**30, gt=0, description="largest first model that an operator may upload")
    authorities: str = Field(default="", description="NAME[:PORT], ..: the only servers requests may be signed for")
    trusted_proxies: str = Field(default="", description="addresses or CIDRs whose X-Forwarded-For and -Proto count")
    rate_per_address: float = Field(default=1000.0, ge=0, description="requests a second; 0: no limit")
    burst_per_address: int = Field(default=10_000, gt=0, description="requests at once")
    rate_per_identity: float = Field(default=100.0, ge=0, description="requests a second; 0: no limit")
    burst_per_identity: int = Field(default=2000, gt=0, description="requests at once")
    max_connections: int = Field(default=4000, gt=0)
    max_connections_per_address: int = Field(default=2000, gt=0, description="not counted for trusted_proxies")
    head_s: float = Field(default=15.0, gt=0, description="in which the head of a request must be there")
    body_s: float = Field(default=30.0, gt=0, description="for a body, besides the time by min_body_bytes_per_s")
    min_body_bytes_per_s: int = Field(default=2048, gt=0)
    response_s: float = Field(default=60.0, gt=0, description="in which a client must read some of a response")
    keep_alive_s: int = Field(default=75, gt=0, description="how long an idle connection stays open")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    metrics: Literal["auto", "on", "off"] = Field(
        default="auto", description="GET /metrics; auto: on a loopback address, unless metrics_port is set"
    )
    metrics_port: int | None = Field(default=None, ge=0, le=65535, description="serve metrics here, plain HTTP")
    metrics_host: str = Field(default="127.0.0.1", description="address of metrics_port")
    metrics_names: str = Field(
        default="", description="NAME, ..: what metrics may be asked for as, beside addresses, localhost, authorities"
    )
    tracing: bool = Field(default=False, description="OpenTelemetry by the OTEL_* variables; needs the extra otel")
    shutdown_grace_s: float = Field(default=20.0, ge=0, le=600, description="for open requests after SIGTERM")
    drain_delay_s: float = Field(default=0.0, ge=0, le=600, description="from SIGTERM until no connection is taken")
    tick_s: float = Field(default=0.5, gt=0, le=1, description="time between two looks at the deadlines")
    lease_s: float = Field(default=3.0, gt=0, description="how long a silent replica keeps its lease")
    unmask_grace_s: float = Field(default=1.0, ge=0, description="wait for the last answers once enough are there")
    reduction_threads: int = Field(default=2, ge=1, le=64)
    ray: str | None = Field(default=None, description="address of a Ray cluster that opens sums; none: threads do")

    @property
    def shows_metrics(self) -> bool:
        """Whether the port of the institutions answers GET /metrics."""
        if self.metrics != "auto":
            return self.metrics == "on"
        return self.metrics_port is None and (self.host == "localhost" or _is_loopback(self.host))

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, text: str | None) -> str | None:
        if text is not None and not _is_database_url(text):
            raise ValueError(
                "it is no URL of a SQLite or PostgreSQL database; write postgresql://USER:PASSWORD@HOST:5432/NAME, "
                "with @ : / and % in a password as %40 %3A %2F %25"
            )
        return text

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, text: str) -> str:
        for item in _listed(text):
            _require_network(item)
        return text

    @property
    def proxies(self) -> list[str]:
        """The trusted proxies, one by one."""
        return _listed(self.trusted_proxies)

    @property
    def names(self) -> frozenset[str]:
        """The authorities that requests may be signed for; none: any."""
        return frozenset(name.lower() for name in _listed(self.authorities))

    @property
    def names_of_metrics(self) -> frozenset[str]:
        """Host names, without ports, under which metrics may be asked for besides addresses."""
        listed = {self.metrics_host, self.host, *self.names, *_listed(self.metrics_names)}
        return frozenset(map(name_of, listed))

    @property
    def first_name(self) -> str | None:
        """The first of the authorities, as it was written; None if there are none."""
        return next(iter(_listed(self.authorities)), None)

    @property
    def key_path(self) -> Path:
        """File of the server's signing key."""
        return self.server_key or self.data / KEY_FILE

    @property
    def blobs_url(self) -> str:
        """Where vectors are kept: a directory, or ``s3://bucket/prefix``."""
        return self.blobs or str(self.data / "blobs")

    @property
    def resolved_database_url(self) -> str:
        """The database to use; ``postgresql://`` means psycopg 3."""
        url = self.database_url
        if url is None:
            return f"sqlite:///{self.data.resolve() / 'aggregator.sqlite'}"
        for plain in ("postgresql://", "postgres://"):
            if url.startswith(plain):
                return "postgresql+psycopg://" + url.removeprefix(plain)
        return url


def _is_database_url(text: str) -> bool:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # ValueError: a part of the password was taken for the port
        return False
    if url.drivername == "sqlite":
        return True
    where = f"{url.host or ''}{url.database or ''}{''.join(url.query)}"
    misread = "@" in where or not where  # a part of the password came to stand there, or all of it stands before the @
    return url.drivername in ("postgresql", "postgres", "postgresql+psycopg") and not misread


def _require_network(text: str) -> None:
    """ValueError with what to write instead, unless ``text`` is an address or a network."""
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            f"{shown(text)} is no address; write addresses or networks such as 10.0.0.0/8, separated by commas"
        ) from None
    if "/" in text and ip_address(text.partition("/")[0]) != network.network_address:
        raise ValueError(f"{text} is an address inside a network; write {network} for the whole network")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _listed(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]
