"""Vectors outside the database, each written once: in a directory, or in an S3-compatible object store."""

from fedddpm_aggregator.blobs.directory import DirectoryBlobs
from fedddpm_aggregator.blobs.interface import (
    BlobConflictError,
    Blobs,
    BlobSettingsError,
    BlobsUnavailableError,
    StorageFullError,
)
from fedddpm_aggregator.blobs.opening import open_blobs

__all__ = [
    "BlobConflictError",
    "BlobSettingsError",
    "Blobs",
    "BlobsUnavailableError",
    "DirectoryBlobs",
    "StorageFullError",
    "open_blobs",
]
