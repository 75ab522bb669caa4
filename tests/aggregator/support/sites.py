"""A served federation with its institutions."""

from __future__ import annotations

from collections.abc import Callable

from tests.aggregator.support.driver import Institution
from tests.aggregator.support.federations import Federation, identity_of


class Site:
    """A served federation with its institutions."""

    def __init__(self, federation: Federation, url: str) -> None:
        self.federation, self.url = federation, url
        self.institutions = {name: Institution(url, name, identity_of(name)) for name in federation.members}

    def __getitem__(self, name: str) -> Institution:
        return self.institutions[name]

    def close(self) -> None:
        for institution in self.institutions.values():
            institution.close()


NewFederation = Callable[..., Federation]
Serve = Callable[[Federation], Site]
