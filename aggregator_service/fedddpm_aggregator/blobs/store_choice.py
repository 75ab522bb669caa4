"""From a setting to a store of blobs."""

from __future__ import annotations

from pathlib import Path

from fedddpm_aggregator.blobs.directory import DirectoryBlobs
from fedddpm_aggregator.blobs.interface import Blobs, BlobSettingsError
from fedddpm_protocol.untrusted.redaction import shown_url

_S3 = "s3://"


def open_blobs(url: str) -> Blobs:
    """The blobs in a directory (a path) or in an object store (``s3://bucket/prefix``).

    Credentials and endpoint of an object store come from the AWS_* variables. Nothing is sent to it yet.

    Raises:
        BlobSettingsError: the URL or the variables cannot be used, or obstore is not installed.
    """
    if url.startswith(_S3):
        try:
            from fedddpm_aggregator.blobs.objects import ObjectBlobs
        except ModuleNotFoundError as error:
            raise BlobSettingsError(
                f"{shown_url(url)} needs the package {error.name}; "
                "install it with: pip install 'fedddpm-aggregator[s3]'"
            ) from error
        return ObjectBlobs(url)
    if "://" in url:
        raise BlobSettingsError(f"blobs cannot be kept in {url.split('://')[0]}://; give a directory or s3://...")
    return DirectoryBlobs(Path(url))
