"""Who may be able to open a file with a secret: one rule for keys and passwords, on a machine and in a mounted secret.

The rule is PostgreSQL's for its TLS key (https://www.postgresql.org/docs/current/ssl-tcp.html): a file of this user is
for this user alone; one that belongs to root may also be readable for a group, since that is how root hands a secret to
a service that runs as somebody else. Kubernetes mounts secrets so: owner root, group ``fsGroup``, mode 0440. One that
belongs to anybody else is refused: its owner can read and change it.
"""

from __future__ import annotations

from dataclasses import dataclass

_GROUP, _OTHERS = 0o070, 0o007
_MORE_THAN_READING = 0o030  # of a group
MOUNTED = "in Kubernetes mount the secret with defaultMode 0440 and let the pod run with an fsGroup, not as root"


@dataclass(frozen=True)
class Complaint:
    """Why the secret in a file is not used, and what to do."""

    happened: str
    advice: str

    def __str__(self) -> str:
        return f"{self.happened}. {self.advice}"


def complaint_of(mode: int, owner: int, user: int, path: object, what: str = "the file") -> Complaint | None:
    """What is wrong with the rights of a file with a secret that ``user`` reads, if anything is.

    ``mode`` and ``owner`` are those of the open file (``st_mode``, ``st_uid``), not of a name that may lead elsewhere
    a moment later; ``what`` is it, as in "the identity".
    """
    if owner not in (0, user):
        return Complaint(
            f"{what} {path} belongs to user {owner}, who may open and change it; this is user {user}",
            f"Run: chown {user} {path} && chmod 600 {path}, or start this as user {owner}; {MOUNTED}",
        )
    by_root_for_another = owner == 0 != user
    if not mode & (_OTHERS | (_MORE_THAN_READING if by_root_for_another else _GROUP)):
        return None
    who = "everybody on this machine" if mode & _OTHERS else "its group"
    cure = f"Run as root: chmod 640 {path}" if by_root_for_another else f"Run: chmod 600 {path}"
    return Complaint(f"{who} may open {what} {path} (mode {mode & 0o777:04o})", f"{cure}; {MOUNTED}")
