"""Settings files, read so that whatever is wrong with one is said in a sentence."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from fedddpm.errors import ConfigError
from fedddpm_protocol.untrusted.redaction import named


def read_toml(path: Path) -> dict[str, Any]:
    """What stands in a TOML file.

    Raises:
        ConfigError: it cannot be read, or is no TOML that this program can take.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{named('the settings', path)} cannot be read ({error.strerror})", "Check the path"
        ) from None
    except ValueError as error:  # also of a number with thousands of digits
        raise ConfigError(f"{path} is not valid TOML: {error}", "Correct that line") from error
    except RecursionError:
        raise ConfigError(f"{path} is not valid TOML for this program: too many brackets", "Correct it") from None
