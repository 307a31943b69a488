"""Who gets the places for clients: no single address can take them all, nor the whole anteroom.

Behind a load balancer all clients have one address. So an address may have most of the places; what it asks for beyond
is served like what comes when all are taken, in the anteroom, where the load balancer's own probes are still answered.
"""

import ipaddress
from collections import Counter
from dataclasses import dataclass
from typing import Final

from headwater.http.descriptors import Descriptors, Place

_SHARE: Final = 0.9
"""Of the places in the room, for one address, where the settings say nothing else."""
_SUBNET: Final = 64
"""Leading bits by which an IPv6 address is known: whoever has one has all that begin with these."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A client's place."""

    place: Place
    client: str
    """Its address."""
    network: str
    """What its connections are counted under."""


class Seats:
    def __init__(self, descriptors: Descriptors, most: int | None) -> None:
        """`most`: connections of one address. None: most of what there is room for."""
        self._descriptors = descriptors
        self._most = most
        self._taken: Counter[tuple[Place, str]] = Counter()

    def take(self, place: Place, client: str) -> Seat | None:
        """Give a client its seat. `place`: where it was let in to; given back where this says None."""
        network = _network(client)
        if place is Place.ROOM and self._taken[place, network] >= self._most_of_room():
            self._descriptors.leave(place)
            if (other := self._descriptors.admit_to_anteroom()) is None:
                return None
            place = other
        if place is Place.ANTEROOM and self._taken[place, network] >= self._descriptors.anteroom // 2:
            self._descriptors.leave(place)
            return None
        self._taken[place, network] += 1
        return Seat(place, client, network)

    def give(self, seat: Seat) -> None:
        key = seat.place, seat.network
        self._taken[key] -= 1
        if not self._taken[key]:
            del self._taken[key]
        self._descriptors.leave(seat.place)

    def _most_of_room(self) -> int:
        return self._most if self._most is not None else max(1, int(self._descriptors.most_clients * _SHARE))


def _network(client: str) -> str:
    if ":" not in client:
        return client
    return str(ipaddress.ip_network((client.partition("%")[0], _SUBNET), strict=False))
