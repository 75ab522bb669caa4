"""The web page for the person who runs a federation: `/`, and what it needs below `/page/`.

What it shows is what the aggregator knows anyway, because it runs the protocol, and what the institutions know too:

* the roster: names of members, versions, fingerprints of keys;
* who did which step of which session and who did not (every step is a message to the aggregator), when a member's last
  request came, who was in a cohort and in its sum (both stand in the signed results);
* of an opened sum the mean losses, the width of its ring, and how many bytes were moved (follows from specifications);
* published models and signed results, for download.

What it does not show: a single upload, share or mask, a single loss or sample count (nobody but their owner knows
those), and not the opened sum of the weights either. That sum is in the signed results, but two of them side by side,
over members that differ by one, tell that one's sample count; a page should not put them side by side.

Everything works without scripts. With them, a stream of server-sent events keeps the page as it is now.
"""

from fedddpm_aggregator.dashboard.routes import Page, install

__all__ = ["Page", "install"]
