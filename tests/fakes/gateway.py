"""A gateway in memory, with the manners of the real one."""

import itertools
import re
from dataclasses import replace

from blocks.errors import Refused
from blocks.http.addresses import canonical
from blocks.ports.gateway import Outcome, Reading, Server, Slot, Split


class FakeGateway:
    """Servers are up as soon as they are attached; requests happen when a test appends their outcomes."""

    def __init__(self, *services: str, knows_authority: bool = True) -> None:
        self._splits = dict.fromkeys(services, Split(0))
        self._servers: dict[str, dict[tuple[Slot, str], Server]] = {service: {} for service in services}
        self._logs: dict[str, list[tuple[str, Outcome]]] = {service: [] for service in services}
        self._starts = dict.fromkeys(services, "start-0")
        self.keys: dict[tuple[str, Slot], str] = {}
        self.tls: set[str] = set()
        """The addresses that are spoken to by TLS."""
        self.strangers: set[str] = set()
        """The addresses of replicas that another authority vouches for."""
        self.dead: set[str] = set()
        """The addresses at which nothing answers."""
        self.looks_until_up = 0
        """So often its servers are listed before a new one is up, as the real one has to ask it first."""
        self._new: dict[tuple[str, Slot, str], int] = {}
        self._knows_authority = knows_authority
        self._numbers = itertools.count(1)

    def split(self, service: str) -> Split:
        self._check(service)
        return self._splits[service]

    def set_split(self, service: str, split: Split) -> None:
        self._check(service)
        self._splits[service] = split

    def servers(self, service: str) -> tuple[Server, ...]:
        self._check(service)
        self._look_at_the_new()
        return tuple(sorted(self._servers[service].values(), key=lambda server: server.slot))

    def _look_at_the_new(self) -> None:
        for (service, slot, address), looks in tuple(self._new.items()):
            self._new[service, slot, address] = looks - 1
            if not looks and (server := self._servers[service].get((slot, address))) is not None:
                del self._new[service, slot, address]
                state = "up" if server.state == "down" and address not in self.dead else server.state
                self._servers[service][slot, address] = replace(server, state=state)

    def attach(self, service: str, slot: Slot, address: str, *, is_tls: bool) -> None:
        self._check(service)
        address = canonical(address)
        known = self._servers[service].get((slot, address))
        if is_tls and not self._knows_authority:
            raise Refused("this gateway knows no authority that vouches for replicas; set replica_ca in its settings")
        if known and is_tls != (address in self.tls):
            kinds = ("plain", "tls") if is_tls else ("tls", "plain")
            raise Refused(f"{address} is attached as {kinds[0]} and not as {kinds[1]}; detach it first")
        (self.tls.add if is_tls else self.tls.discard)(address)
        state = "down" if address in self.dead or (is_tls and address in self.strangers) else "up"
        if self.looks_until_up and not known and state == "up":
            self._new[service, slot, address], state = self.looks_until_up, "down"
        self._servers[service][slot, address] = Server(slot, address, state, known.in_flight if known else 0)

    def set_key(self, service: str, slot: Slot, key: str | None) -> None:
        self._check(service)
        if key is not None and not re.fullmatch(r"[\w.-]+", key):
            raise Refused(f"the key for {slot} of {service} has other characters than letters, digits and . - _")
        if key is None:
            self.keys.pop((service, slot), None)
        else:
            self.keys[service, slot] = key

    def drain(self, service: str, slot: Slot, address: str) -> None:
        self._check(service)
        address = canonical(address)
        server = self._find(service, slot, address)
        self._servers[service][slot, address] = replace(server, state="draining")

    def die(self, service: str, slot: Slot, address: str) -> None:
        """Nothing answers there any more."""
        self.dead.add(address)
        self._servers[service][slot, address] = replace(self._find(service, slot, address), state="down")

    def detach(self, service: str, slot: Slot, address: str) -> None:
        self._check(service)
        self._servers[service].pop((slot, canonical(address)), None)

    def requests(self, service: str, after: str | None) -> Reading:
        self._check(service)
        log = self._logs[service]
        cursors = [self._starts[service], *(cursor for cursor, _ in log)]
        outcomes = tuple(outcome for _, outcome in log)
        if after is None:
            return Reading(outcomes=(), cursor=cursors[-1], is_complete=True)
        if after not in cursors:
            return Reading(outcomes=outcomes, cursor=cursors[-1], is_complete=False)
        return Reading(outcomes=outcomes[cursors.index(after) :], cursor=cursors[-1], is_complete=True)

    def append(self, service: str, *outcomes: Outcome) -> None:
        """Those requests end now."""
        self._logs[service] += ((f"request-{next(self._numbers)}", outcome) for outcome in outcomes)

    def set_in_flight(self, service: str, slot: Slot, address: str, count: int) -> None:
        server = self._find(service, slot, address)
        self._servers[service][slot, address] = replace(server, in_flight=count)

    def lose_log(self, service: str) -> None:
        """As a restart of the gateway does."""
        self._logs[service].clear()
        self._starts[service] = f"start-{next(self._numbers)}"

    def _check(self, service: str) -> None:
        if service not in self._splits:
            raise Refused(f"there is no service {service}; there are: {', '.join(sorted(self._splits))}")

    def _find(self, service: str, slot: Slot, address: str) -> Server:
        server = self._servers[service].get((slot, address))
        if server is None:
            raise Refused(f"there is no server {address} in {slot} of {service}; attach it first")
        return server
