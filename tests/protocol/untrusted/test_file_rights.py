"""Who may read a secret's file: its owner alone, or a group that root chose, as with a secret mounted in a pod."""

from __future__ import annotations

import pytest

from fedddpm_protocol.untrusted.file_rights import complaint_of

ROOT, ME, ANOTHER = 0, 1000, 1001
FILE = 0o100000


@pytest.mark.parametrize(
    ("mode", "owner", "user", "refused"),
    [
        (0o600, ME, ME, False),
        (0o400, ME, ME, False),
        (0o700, ME, ME, False),
        (0o640, ME, ME, True),
        (0o440, ME, ME, True),
        (0o604, ME, ME, True),
        (0o640, ROOT, ME, False),
        (0o440, ROOT, ME, False),
        (0o660, ROOT, ME, True),  # the group could change it
        (0o650, ROOT, ME, True),
        (0o444, ROOT, ME, True),
        (0o644, ROOT, ME, True),
        (0o641, ROOT, ME, True),
        (0o600, ROOT, ROOT, False),
        (0o440, ROOT, ROOT, True),
        (0o640, ANOTHER, ME, True),
        (0o600, ANOTHER, ROOT, True),  # its owner could change it
        (0o400, ANOTHER, ME, True),
    ],
)
def test_the_rule(mode: int, owner: int, user: int, refused: bool) -> None:
    assert (complaint_of(FILE | mode, owner, user, "a.key") is not None) is refused


@pytest.mark.parametrize(
    ("mode", "owner", "user", "happened", "advice"),
    [
        (0o644, ME, ME, "everybody on this machine may open the identity a.key (mode 0644)", "Run: chmod 600 a.key; "),
        (0o640, ME, ME, "its group may open the identity a.key (mode 0640)", "Run: chmod 600 a.key; "),
        (0o444, ROOT, ME, "everybody on this machine may open the", "Run as root: chmod 640 a.key; "),
        (0o600, ANOTHER, ME, "the identity a.key belongs to user 1001, who may open and", "Run: chown 1000 a.key && "),
    ],
)
def test_what_is_wrong_and_what_to_do(mode: int, owner: int, user: int, happened: str, advice: str) -> None:
    complaint = complaint_of(FILE | mode, owner, user, "a.key", "the identity")
    assert complaint is not None
    assert complaint.happened.startswith(happened)
    assert complaint.advice.startswith(advice)
    assert "defaultMode 0440" in complaint.advice
    assert str(complaint) == f"{complaint.happened}. {complaint.advice}"
