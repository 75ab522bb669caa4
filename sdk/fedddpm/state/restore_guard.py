"""After a restore from a backup nobody knows which base models were spent since: sit out until a new one comes."""

from __future__ import annotations

import json
from collections.abc import Callable

from fedddpm.state.folder import StateFolder
from fedddpm_protocol.agreement.spec import RoundSpec

_FACT = "sit-out"


class RestoreGuard:
    """Decides whether a specification's base model may be contributed to; survives restarts."""

    def __init__(self, state: StateFolder, after_restore: bool) -> None:
        self._state = state
        if after_restore and state.fact(_FACT) is None:
            state.remember(_FACT, b"[]")

    def admits(self, spec: RoundSpec, notice: Callable[[str], None]) -> bool:
        """Whether to take part. After a restore: only from a later round on, on a base model never seen here."""
        waiting = self._state.fact(_FACT)
        seen = self._state.has_seen_base(spec.base_model_hash)
        self._state.see_base(spec.base_model_hash)
        if waiting is None:
            return True
        first_seen: list[str | int] = json.loads(waiting)
        if not first_seen:
            self._state.remember(_FACT, json.dumps([spec.run, spec.round]).encode())
        elif not seen and first_seen != [spec.run, spec.round]:
            self._state.forget(_FACT)
            return True
        notice(
            f"restored from a backup: sitting out round {spec.round + 1} until there is a base model never seen here"
        )
        return False
