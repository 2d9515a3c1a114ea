"""How far a joiner's search has come, told to people and programs, and why it found nothing (no I/O)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from sdnet_core import Candidate, Way, WayState

from .code import TAG_BYTES

__all__ = ["Activity", "Search", "SearchStatus", "SearchWay"]

MAX_COUNTED = 1024
_NEAR, _FAR = "mdns", "dht"


class Activity(StrEnum):
    """What a search is about to do, the furthest of all attempts."""

    LOOKING = "looking"
    CONNECTING = "connecting"
    ASKING = "asking"
    WAITING_FOR_APPROVAL = "waiting-for-approval"


_ORDER = list(Activity)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchWay:
    """One way in which devices are looked for.

    :param name: ``mdns`` for this network, ``dht`` for meeting points, ``hints`` for addresses that were given.
    :param state: as `sdnet_core.WayState` says.
    :param peers: devices that it has shown so far, whether they have to do with this pairing or not.
    """

    name: str
    state: str
    detail: str
    peers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchStatus:
    """A search at one moment.

    :param peers: other devices that were seen.
    :param pairing: of those, how many wait to be paired, with whatever code.
    :param found: devices that show this code, or at which a hint points.
    :param addresses: where those may be reached; so many have been tried.
    :param problem: what went wrong with the last attempt, one sentence; empty for nothing.
    :param summary: all of this in one line, for a person.
    """

    activity: Activity
    ways: tuple[SearchWay, ...]
    peers: int
    pairing: int
    found: int
    addresses: int
    problem: str
    summary: str


class Search:
    """Keeps what one search has come across.

    :param ways: gives the node's ways of looking, as they stand now.
    :param hinted: somebody has told where the device may be.
    """

    def __init__(self, ways: Callable[[], Iterable[Way]], *, hinted: bool) -> None:
        self._ways = ways
        self._hinted = hinted
        self._seen: dict[str, set[str]] = {}
        self._pairing: set[str] = set()
        self._activities: dict[str, Activity] = {}
        self._addresses: set[str] = set()
        self._answered = False
        self._problem = ""

    def saw(self, candidate: Candidate) -> None:
        """Discovery has shown a peer."""
        seen = self._seen.setdefault(candidate.source, set())
        if len(seen) < MAX_COUNTED:
            seen.add(candidate.peer_id)
        if any(len(tag) == TAG_BYTES for tag in candidate.tags):
            if len(self._pairing) < MAX_COUNTED:
                self._pairing.add(candidate.peer_id)
        else:
            self._pairing.discard(candidate.peer_id)

    def found(self, peer_id: str, addresses: Iterable[str]) -> None:
        """A peer shows this code, or was hinted at."""
        self._activities.setdefault(peer_id, Activity.LOOKING)
        self._addresses.update(addresses)

    def does(self, peer_id: str, activity: Activity) -> None:
        """An attempt at a peer has come so far."""
        self._activities[peer_id] = activity
        self._answered = self._answered or activity is not Activity.CONNECTING

    def failed(self, peer_id: str, problem: str) -> None:
        """An attempt at a peer has failed; another one follows if there is time."""
        self._activities[peer_id] = Activity.LOOKING
        self._problem = problem

    def status(self) -> SearchStatus:
        """The search now."""
        ways = [
            SearchWay(name=way.name, state=str(way.state), detail=way.detail, peers=len(self._seen.get(way.name, ())))
            for way in self._ways()
        ]
        if self._hinted:
            ways.append(SearchWay(name="hints", state=str(WayState.LOOKING), detail="", peers=0))
        activity = max(self._activities.values(), key=_ORDER.index, default=Activity.LOOKING)
        return SearchStatus(
            activity=activity,
            ways=tuple(ways),
            peers=self._peers,
            pairing=len(self._pairing),
            found=len(self._activities),
            addresses=len(self._addresses),
            problem=self._problem,
            summary=self._summary(activity, ways),
        )

    @property
    def _peers(self) -> int:
        return len(set().union(*self._seen.values()))

    @property
    def _here(self) -> set[str]:
        """Not those found through meeting points: they may be anywhere, and from an earlier search."""
        return set().union(*(peers for way, peers in self._seen.items() if way != _FAR))

    def _summary(self, activity: Activity, ways: list[SearchWay]) -> str:
        match activity:
            case Activity.CONNECTING:
                return f"Found it; trying {_count(len(self._addresses), 'address', 'addresses')}…"
            case Activity.ASKING:
                return "Connected; proving that both know the code…"
            case Activity.WAITING_FOR_APPROVAL:
                return "Waiting for the person at the other device to accept…"
        if self._activities and self._problem:
            return f"Found it, but could not reach it yet; trying again. {self._problem}"
        texts = {_NEAR: "on this network", _FAR: "through meeting points", "hints": "where the link or hint says"}
        looking = [texts.get(way.name, f"by {way.name}") for way in ways if way.state != WayState.OFF]
        seen = _count(self._peers, "other device", "other devices")
        return f"Looking {_listed(looking) or 'nowhere'}: {seen} seen, {len(self._pairing)} waiting to be paired."

    def diagnosis(self) -> str:
        """Why nothing came of it, and what may help; whole sentences for a person."""
        if self._activities and self._answered:
            return f"The device that shows the code was reached, but did not pair in time. {self._problem}".rstrip()
        ways = {way.name: way for way in self._ways()}
        if self._activities:
            where = _count(len(self._addresses), "address", "addresses")
            return (
                f"The device was found, but could not be reached at {where}: {self._problem or 'no answer came.'} "
                "A firewall may be in the way, or a network that keeps its devices apart, as guest networks do."
            )
        said = ["No device that shows this code was found.", *self._about_near(ways.get(_NEAR))]
        return " ".join([*said, self._about_far(ways.get(_FAR))])

    def _about_near(self, way: Way | None) -> list[str]:
        said = []
        if way is None or way.state is WayState.OFF:
            if way is not None or not self._seen:
                said.append("Looking on this network is switched off ([discovery] mdns).")
        elif way.state is not WayState.LOOKING:
            said.append(f"Looking on this network does not work: {way.detail or way.state}.".replace("..", "."))
        elif not self._here:
            said.append(
                "No other device announces itself on this network: the other one is elsewhere or its node does not "
                "run, or the network blocks multicast, as guest networks often do."
            )
        if pairing := len(self._here & self._pairing):
            waiting = _count(pairing, "device here waits", "devices here wait")
            said.append(f"{waiting} to be paired, but with another code: compare the words.")
        elif self._here:
            seen = _count(len(self._here), "other device was", "other devices were")
            said.append(
                f"{seen} seen, but none waits to be paired: the code has expired (after five minutes), was used or "
                "cancelled, or its device is on another network."
            )
        return said

    def _about_far(self, way: Way | None) -> str:
        if way is None or way.state is WayState.OFF:
            return (
                "To find it on another network, both devices need a meeting point in common: see 'sdnet config "
                "bootstrap add --help', or use the other device's link or QR code."
            )
        if way.state is WayState.LOOKING:
            return (
                "The meeting points know no device with this code either: it may use others, or the clocks of the two "
                "devices differ by minutes."
            )
        return f"The meeting points are of no help now: {way.detail or way.state}"


def _count(number: int, one: str, many: str) -> str:
    return f"{number or 'no'} {one if number == 1 else many}"


def _listed(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}" if texts else ""
