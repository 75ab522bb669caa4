"""TLS by certificate files: version 1.2 at least, and renewed certificates without a restart."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.security.private_files import PrivateFileError, read_private
from fedddpm_protocol.untrusted.redaction import named

log = logging.getLogger(__name__)
LOOK_S = 10.0


class Certificate:
    """Certificate chain and private key in PEM files, as a live TLS context uses them."""

    def __init__(self, chain: Path, key: Path) -> None:
        self._chain, self._key = chain, key
        self._seen = self._times()

    def check(self) -> None:
        """OperatorError unless the files are a chain and its key, which nobody else can read."""
        for option, path in (("--tls-cert", self._chain), ("--tls-key", self._key)):
            try:
                path.open("rb").close()
            except OSError as error:
                raise OperatorError(f"{named(option, path)} cannot be read: {error.strerror}") from error
        try:  # the ssl module's own error names no file
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._chain, self._key)
        except ssl.SSLError as error:
            raise OperatorError(
                f"{self._chain} and {self._key} are no certificate chain and its private key in PEM "
                f"({error.reason or error})"
            ) from error
        try:
            read_private(self._key)
        except PrivateFileError as error:
            raise OperatorError(f"--tls-key: {error}") from error

    def renew(self, context: ssl.SSLContext) -> bool:
        """Let ``context`` use the files if they were changed; whether it does. Broken ones are told and left out."""
        times = self._times()
        if times == self._seen:
            return False
        self._seen = times
        try:
            self.check()
            context.load_cert_chain(self._chain, self._key)
        except (OperatorError, OSError) as error:
            log.error("the certificate was not renewed", extra={"fields": {"reason": str(error)}})
            return False
        log.info("the certificate was renewed")
        return True

    async def watch(self, context: ssl.SSLContext) -> None:
        """Renew until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.renew(context)

    def _times(self) -> tuple[int, ...]:
        try:
            found = [path.stat() for path in (self._chain, self._key)]
            return tuple(time for status in found for time in (status.st_mtime_ns, status.st_ctime_ns))  # rights too
        except OSError:  # between the old file and the new one
            return ()
