"""The one bucket of an S3-compatible store: how it is opened, and what its errors mean.

What the store or the library says in an error stays here: it can repeat parts of a signed request.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from fedddpm_aggregator.blobs.interface import (
    BlobConflictError,
    BlobSettingsError,
    BlobsUnavailableError,
    StorageFullError,
    require_name,
)

if TYPE_CHECKING:
    from obstore.store import RetryConfig  # only in its type information

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_RETRIES: RetryConfig = {
    "max_retries": 5,
    "retry_timeout": timedelta(seconds=15),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
}
_FULL = ("XMinioStorageFull", "QuotaExceeded", "InsufficientStorage", "507 Insufficient")


class BeyondTheEndError(Exception):
    """A range that begins where the blob has ended."""


def open_store(url: str) -> S3Store:
    """The store of ``s3://bucket/prefix``, set up by the AWS_* variables; BlobSettingsError. Nothing is sent yet."""
    place = urlsplit(url)
    if "@" in url:
        raise BlobSettingsError(
            "the blobs' URL must be s3://bucket/prefix, without an @; credentials come by AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    if not place.hostname or place.username or place.password or place.query or place.fragment:
        raise BlobSettingsError(
            f"the blobs' URL must be s3://bucket/prefix and nothing else; bucket {place.hostname!r}"
        )
    prefix = place.path.strip("/")
    if prefix:
        require_name(prefix)
    endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "")
    plain = endpoint.hostname in _LOOPBACK or os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")
    if endpoint.scheme == "http" and not plain:
        raise BlobSettingsError(
            f"the object store at {endpoint.hostname} would be talked to without TLS; "
            "give an https:// endpoint, or set AWS_ALLOW_HTTP=true if the network between is trusted"
        )
    try:
        return S3Store(
            place.hostname,
            prefix=prefix or None,
            config={"copy_if_not_exists": "multipart"},
            client_options={"allow_http": plain, "timeout": timedelta(seconds=60)},
            retry_config=_RETRIES,
        )
    except (BaseError, ValueError):
        raise BlobSettingsError(f"{url} cannot be opened as it is; check the AWS_* variables") from None


@contextlib.contextmanager
def errors_of(url: str) -> Iterator[None]:
    """The library's errors as those of the interface, without what it says of the request."""
    try:
        yield
    except FileNotFoundError as error:
        failure: Exception = FileNotFoundError(f"{url}: there is no such blob")
        if "NoSuchBucket" in str(error):
            failure = _no_bucket(url)
    except (AlreadyExistsError, PreconditionError):
        failure = BlobConflictError(f"{url}: the blob exists")
    except (PermissionDeniedError, UnauthenticatedError):
        failure = _refused(url)
    except BaseError as error:
        failure = _failure(url, str(error))
    else:
        return
    raise failure from None


def _failure(url: str, said: str) -> Exception:
    if "NoSuchBucket" in said or "InvalidBucketName" in said:
        return _no_bucket(url)
    if "403 Forbidden" in said or "401 Unauthorized" in said:  # of a listing
        return _refused(url)
    if "InvalidRange" in said or "416 Range" in said:
        return BeyondTheEndError()
    if any(word in said for word in _FULL):
        return StorageFullError()
    return BlobsUnavailableError(f"{url}: the object store does not answer as it should; try again later")


def _refused(url: str) -> Exception:
    return BlobSettingsError(
        f"{url}: the object store refuses the credentials; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what "
        "they may do in this bucket"
    )


def _no_bucket(url: str) -> Exception:
    return BlobSettingsError(f"{url}: there is no such bucket; create it, or check AWS_ENDPOINT_URL")
