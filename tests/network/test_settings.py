"""What operators and users write about egress outside a policy: settings, and words on the command line."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from ringfence.cli.options import egress
from ringfence.config import read_server
from ringfence.domain.errors import BadRequest
from ringfence.engine.policy import Policy
from ringfence.runtimes.base import Networked
from ringfence.runtimes.fake import Fake


def test_words_become_a_policy() -> None:
    """A bundle has no dot, a host has; nothing said is nothing asked."""
    assert egress(()) is None
    assert egress(("none",)) == "none"
    assert egress(("pypi", "*.example.com")) == {"allow": ["*.example.com"], "bundles": ["pypi"]}


def test_the_operators_networks(tmp_path: Path) -> None:
    """Opened and closed in the settings' file; a bad one stops the server before it serves."""
    file = tmp_path / "server.toml"
    file.write_text('[egress]\npermit = ["10.1.2.3/32"]\ndeny = ["93.184.216.0/24"]\nresolvers = ["10.0.0.53"]\n')
    floor = read_server(str(file)).egress.floor()
    assert floor.permits(IPv4Address("10.1.2.3"))
    assert not floor.permits(IPv4Address("93.184.216.34"))
    for line in ('permit = ["10.1.2.3/8"]', 'deny = ["x"]', 'resolvers = ["dns.example.com"]', "open = true"):
        file.write_text(f"[egress]\n{line}\n")
        with pytest.raises(BadRequest):
            read_server(str(file))


def test_the_engine_sends_nothing_when_nothing_was_asked() -> None:
    """So that the one-shot path costs what it did; what was asked is sent spelt out."""
    policy = Policy()
    assert policy.egress(None) == {}
    assert policy.egress("none") == {"egress": {"mode": "none"}}
    sent = policy.egress({"bundles": ["npm"]})["egress"]
    assert sent["allow"][0]["domain"] == "registry.npmjs.org"
    with pytest.raises(BadRequest, match="rule 0"):
        policy.egress(["*.com"])


def test_a_runtime_has_no_network_unless_it_says_so() -> None:
    """The fake one cannot be mistaken for one that has."""
    assert not isinstance(Fake(), Networked)
    assert Fake().capabilities().offline
