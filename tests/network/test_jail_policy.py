"""The jail with templates that bring a policy, with gateways, and where tenants may learn: the node's own verbs."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringfence.domain.egress import NO_FLOOR, floor_from, policy_from
from ringfence.domain.errors import BadRequest
from ringfence.domain.gateways import gateway_from
from ringfence.domain.template import template_from_toml
from ringfence.network.network import Network
from ringfence.node.isolation import Isolation
from ringfence.node.supervisor import Settings, Supervisor
from ringfence.runtimes.jail.cgroups.detect import detect
from ringfence.runtimes.jail.runtime import Jail
from ringfence.templates.catalog import Catalog
from tests.network.lab import ALLOWED, INTRANET, NAMES, UPLINK, Lab
from tests.network.labnode import LabNode, need
from tests.support.subjects import TEMPLATES

GOOD = "good.example.com"
WEB = [GOOD, {"domain": GOOD, "protocol": "http"}]
INSIDE = [{"domain": "inside.example.com", "protocol": "http"}, {"cidr": f"{INTRANET}/32", "ports": [8080]}]
GATEWAYS = {
    "office": gateway_from("office", {"kind": "source", "address": str(UPLINK)}),
    "down": gateway_from("down", {"kind": "source", "address": "51.15.0.99"}),
}
FLOOR = floor_from([f"{ALLOWED}/32"], [f"{INTRANET}/32"])  # an intranet server opened, a public one closed


def catalog(folder: Path) -> Catalog:
    """Templates of one root with egress of their own."""
    base = Catalog(TEMPLATES).read("base")
    made = Catalog(folder)
    (folder / base.digest).symlink_to(TEMPLATES / base.digest)
    for name, egress, gateway in (
        ("base", "none", ""),
        ("inside", INSIDE, ""),
        ("web", WEB, ""),
        ("pinned", WEB, "down"),
    ):
        policy = policy_from(egress, NO_FLOOR)
        template = dataclasses.replace(base.template, name=name, egress=policy, egress_gateway=gateway)
        made.record(dataclasses.replace(base, template=template))
    return made


class PolicyNode(LabNode):
    """A node whose operator opened and closed a network, defined gateways and lets tenants learn."""

    def __init__(self, lab: Lab, folder: Path, settings: Settings) -> None:
        self._folder = folder
        self._settings = settings
        super().__init__(lab)

    async def _opened(self) -> Supervisor:
        self.network = Network(floor=self._settings.floor, resolvers=((NAMES, 53),), gateways=GATEWAYS)
        jail = Jail(detect(f"test-{uuid.uuid4().hex[:12]}", root=True), privileged=True, network=self.network)
        supervisor = Supervisor(Isolation(jail), catalog(self._folder), self._settings)
        await supervisor.begin()
        return supervisor


def opened(lab: Lab, folder: Path, settings: Settings) -> Iterator[PolicyNode]:
    """A node, and its end."""
    need("jail")
    made = PolicyNode(lab, folder, settings)
    yield made
    made.close()


@pytest.fixture(scope="module")
def node(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PolicyNode]:
    """The operator's own floor, gateways, learning."""
    settings = Settings(floor=FLOOR, learn=True, gateways=frozenset(GATEWAYS))
    yield from opened(lab, tmp_path_factory.mktemp("templates"), settings)


@pytest.fixture(scope="module")
def plain(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PolicyNode]:
    """The same templates under the default floor."""
    yield from opened(lab, tmp_path_factory.mktemp("plain"), Settings(gateways=frozenset(GATEWAYS)))


def test_what_the_operator_opened_may_stand_in_a_template(lab: Lab, node: PolicyNode) -> None:
    """An internal mirror, say: judged where it is used, by the floor that is in force there."""
    live = node.made(template="inside")
    said = node.python(live, "print(fetch('http://inside.example.com/a'), fetch('http://10.20.30.40:8080/b'))")
    assert said == f"{INTRANET} /a 0: {INTRANET} /b 0:"
    node.release(live)
    assert lab.capture.destinations() == {NAMES, INTRANET}


def test_a_template_is_judged_by_the_floor_where_it_is_used(node: PolicyNode, plain: PolicyNode) -> None:
    """The same template on another node, or after the operator closed what it names: refused with the rule's index."""
    with pytest.raises(BadRequest, match=r"rule 1 is for 10.20.30.40/32, which is below the operator's floor"):
        plain.made(template="inside")
    live = plain.made("none", template="inside")  # what asks for something else is not touched by it
    plain.release(live)
    with pytest.raises(BadRequest, match=r"rule 0 .*below"):
        node.made([{"cidr": f"{ALLOWED}/32", "ports": [80]}])


def test_a_recipe_is_judged_where_the_operators_floor_is_known(tmp_path: Path) -> None:
    """Building one on the server's machine refuses at once what could never be used; reading one back never does."""
    text = 'name = "inside"\n[egress]\nallow = [{cidr = "10.20.30.40/32", ports = [8080]}]\n'
    assert template_from_toml(text, FLOOR).egress.networked
    assert template_from_toml(text).egress.networked
    with pytest.raises(BadRequest, match=r"rule 0 .*below the operator's floor"):
        template_from_toml(text, floor_from([], []))


def test_a_gateway_is_shown_and_kept_over_a_change_of_policy(lab: Lab, plain: PolicyNode) -> None:
    """Whatever its owner then asks for."""
    live = plain.made(WEB, egress_gateway="office")
    assert live.describe()["egress_gateway"] == "office"
    assert ALLOWED in plain.python(live, f"print(fetch('http://{GOOD}/'))")
    plain.do(plain.supervisor.allow(live, [{"domain": GOOD, "protocol": "http"}]))
    assert live.describe()["egress_gateway"] == "office"
    plain.release(live)


def test_a_template_s_gateway_that_is_down_lets_nothing_out(lab: Lab, plain: PolicyNode) -> None:
    """Whatever egress the sandbox asks for, and whichever gateway: the pin stands, and the denial says why."""
    for ask in (None, WEB):
        live = plain.made(ask, template="pinned")
        assert "the egress gateway down is down" in plain.python(live, f"print(fetch('http://{GOOD}/'))")
        plain.release(live)
    with pytest.raises(BadRequest, match="pinned must leave by the egress gateway down"):
        plain.made(WEB, template="pinned", egress_gateway="office")
    with pytest.raises(BadRequest, match="no egress gateway 'nowhere' here"):
        plain.made(WEB, egress_gateway="nowhere")
    assert ALLOWED not in lab.capture.destinations()


def test_learning_is_checked_again_by_the_node(lab: Lab, node: PolicyNode, plain: PolicyNode) -> None:
    """Where the operator said nothing it is refused here too; where he allowed it, a run learns by letting pass."""
    with pytest.raises(BadRequest, match="the operator has not allowed"):
        plain.made({"mode": "learn"})
    live = plain.made([])
    with pytest.raises(BadRequest, match="the operator has not allowed"):
        plain.do(plain.supervisor.allow(live, {"mode": "learn"}))
    plain.release(live)
    live = node.made({"mode": "learn"})
    assert f"{INTRANET} /x" in node.python(live, "print(fetch('http://inside.example.com/x'))")
    assert ALLOWED not in node.python(live, f"print(fetch('http://{GOOD}/'))")  # closed by this operator
    node.release(live)
    told = node.told(live, "egress.allowed")
    assert {(each["name"], each["path"]) for each in told} >= {("inside.example.com", "/x")}
    assert ALLOWED not in lab.capture.destinations()
