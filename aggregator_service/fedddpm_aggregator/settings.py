"""What an operator can set, read once at process start from arguments and ``FEDDDPM_AGGREGATOR_*`` variables."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings of one aggregator process."""

    model_config = SettingsConfigDict(env_prefix="FEDDDPM_AGGREGATOR_", extra="forbid")

    data: Path = Field(description="directory of the signing key, the vectors and, by default, the database")
    database_url: str | None = Field(default=None, description="SQLAlchemy URL; a SQLite file in the data directory")
    host: str = "127.0.0.1"
    port: int = Field(default=8750, ge=0, le=65535)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    max_message_bytes: int = Field(default=2 * 2**20, gt=0, description="largest JSON request")
    max_chunk_bytes: int = Field(default=4 * 2**20, gt=0, description="largest chunk of a masked vector")
    signature_max_age_s: int = Field(default=300, gt=0, description="how old a signed request may be")
    signature_max_ahead_s: int = Field(default=60, ge=0, description="how far a client's clock may be ahead")
    tick_s: float = Field(default=0.5, gt=0, le=1, description="time between two looks at the deadlines")
    lease_s: float = Field(default=3.0, gt=0, description="how long a silent replica keeps its lease")
    unmask_grace_s: float = Field(default=1.0, ge=0, description="wait for the last answers once enough are there")
    reduction_threads: int = Field(default=2, ge=1, le=64)

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
