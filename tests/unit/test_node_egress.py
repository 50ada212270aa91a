"""By which way a sandbox leaves is decided whatever it may reach: no destination is added past the gateway."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from ringfence.domain.egress import DEFAULT_FLOOR, Policy
from ringfence.domain.errors import BadRequest
from ringfence.domain.secrets import Authority, Held, Part, Place, Trust, with_hosts
from ringfence.domain.template import Template
from ringfence.node.egress import policy_of

PLAIN = Template(name="plain", description="no egress of its own")
PINNED = dataclasses.replace(PLAIN, name="pinned", egress_gateway="office")
HELD = Held("api", ("api.example.com",), (Place(Part.HEADER, "Authorization"),), "placeholder", "0123456789abcdef")


def policy(ask: dict[str, Any], template: Template) -> Policy:
    """What this node makes of a request."""
    return policy_of(ask, template, DEFAULT_FLOOR, frozenset({"office"}), learn=False)


@pytest.mark.parametrize(
    ("ask", "template"),
    [({"egress_gateway": "office"}, PLAIN), ({}, PINNED), ({"egress": "none", "egress_gateway": "office"}, PLAIN)],
    ids=["of its tenant", "of its template", "with none said"],
)
def test_the_hosts_of_secrets_are_reached_by_the_gateway_too(ask: dict[str, Any], template: Template) -> None:
    """A sandbox with secrets and no policy of its own leaves by the gateway it is pinned to, not past it."""
    widened = with_hosts(policy(ask, template), Trust((HELD,), Authority("certificate", "key")))
    assert widened.networked
    assert widened.gateway == "office"


def test_a_gateway_that_is_not_here_refuses_the_sandbox_whatever_it_may_reach() -> None:
    """Failing closed: not one day with a network and no gateway."""
    with pytest.raises(BadRequest, match="nowhere"):
        policy({"egress_gateway": "nowhere"}, PLAIN)


def test_without_any_nothing_is_made_anew() -> None:
    """Most sandboxes have neither policy nor gateway: theirs is the template's own, as it stands."""
    assert policy({}, PLAIN) is PLAIN.egress
