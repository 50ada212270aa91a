"""The JSON shapes about egress policies as such; those of sandboxes that have one are in wire.py."""

from __future__ import annotations

from typing import Any

from ringfence.wire import Answer, ErrorBody, Request


class EgressLearnRequest(Request, frozen=True):
    """What was done by these runs and sandboxes, as a policy; `generalise` also proposes wildcards, each said."""

    ids: list[str]
    generalise: bool = False


class EgressRefusal(Answer, frozen=True):
    """A rule that is refused, by its place in the list."""

    index: int
    reason: str


class EgressChecked(Answer, frozen=True):
    """What a policy means, a line for the whole and one for each rule; or why it is refused."""

    ok: bool
    policy: dict[str, Any] = {}
    meaning: list[str] = []
    refused: list[EgressRefusal] = []
    error: ErrorBody | None = None


class EgressSeen(Answer, frozen=True):
    """One destination, all that went there, and which rule or bundle is proposed for it."""

    place: str
    protocol: str
    port: int
    requests: list[str] = []
    times: int = 0
    denied: int = 0
    sent: int = 0
    received: int = 0
    events: list[int] = []
    by: str = ""


class EgressRefused(Answer, frozen=True):
    """What was denied and no policy could allow."""

    place: str
    protocol: str
    port: int
    reason: str
    event: int


class EgressLearned(Answer, frozen=True):
    """A proposed policy with its evidence. `unrecorded` connections were too many to be told of."""

    policy: dict[str, Any]
    bundles: list[str] = []
    seen: list[EgressSeen] = []
    refused: list[EgressRefused] = []
    notes: list[str] = []
    unrecorded: int = 0


class EgressRule(Answer, frozen=True):
    """One line of a bundle."""

    domain: str
    ports: list[int]
    protocol: str
    reason: str


class EgressBundle(Answer, frozen=True):
    """Destinations that go by one name."""

    name: str
    rules: list[EgressRule]


class EgressBundleList(Answer, frozen=True):
    """Every bundle."""

    bundles: list[EgressBundle]


class EgressGateway(Answer, frozen=True):
    """A fixed place from which connections can leave; `pinned` when this tenant's always do."""

    name: str
    kind: str
    address: str
    pinned: bool = False


class EgressGatewayList(Answer, frozen=True):
    """The gateways a tenant may use."""

    gateways: list[EgressGateway]


class EgressSum(Answer, frozen=True):
    """What went to one destination from `time` on, for one step."""

    time: float
    place: str
    protocol: str
    port: int
    times: int
    denied: int
    sent: int
    received: int


class EgressReport(Answer, frozen=True):
    """A tenant's connections by destination and time, of at most its newest `most` that were told of."""

    since: float
    step: float
    most: int
    sums: list[EgressSum]
