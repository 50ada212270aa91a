"""After much use nothing of it is left: no descriptor, no connection, no wire, no memory that grows with it."""

from __future__ import annotations

import contextlib

from tests.network.lab import ALLOWED, FORBIDDEN, PEER, Lab, asked, get, tls_client
from tests.network.test_egress_live import eventually
from tests.support import ledger

GOOD, EVIL = "good.example.com", "evil.example.net"
RULES = [
    GOOD,
    {"domain": GOOD, "protocol": "http"},
    {"domain": GOOD, "protocol": "tcp", "ports": [7001]},
    {"cidr": f"{PEER}/32", "ports": [7002]},
]
ROUNDS = 12


def use(lab: Lab, number: int) -> None:
    """Every way a connection can end: done, denied, failed, cut by a changed policy, left open at the sandbox's end."""
    sandbox = lab.sandbox(f"used-{number}", {"allow": RULES})
    addresses = sandbox.addresses(GOOD)
    assert addresses == [ALLOWED]
    sandbox.addresses(EVIL)
    with contextlib.suppress(OSError), tls_client(lab, sandbox, ALLOWED, GOOD) as connection:
        asked(connection, get(GOOD, "/", extra="Connection: close\r\n"))
    for host, address in ((GOOD, ALLOWED), (EVIL, FORBIDDEN)):
        with contextlib.suppress(OSError), sandbox.connection(address, 80) as plain:
            asked(plain, get(host, "/"))
    with contextlib.suppress(OSError), sandbox.connection(PEER, 7002) as refused:  # nobody listens there
        refused.recv(1)
    with lab.door(ALLOWED, 7001) as door, contextlib.ExitStack() as open_:
        for _ in range(3):
            open_.enter_context(sandbox.connection(ALLOWED, 7001))
            open_.enter_context(door.accept()[0])
        if number % 2:
            sandbox.allow({"mode": "rehearse", "allow": []})
        sandbox.close()
    lab.sandboxes.remove(sandbox)


def held(lab: Lab) -> ledger.Process:
    """What the gate holds now."""
    return ledger.process(lab.do(lab.network.status())["gate"])


def wires(lab: Lab) -> int:
    """How many wires end in the router."""
    return len(lab.network._router._slots)


def test_a_much_used_gate_holds_what_a_fresh_one_does(lab: Lab) -> None:
    """Descriptors are the same number, and memory does not grow with use."""
    for number in range(ROUNDS):
        use(lab, number)
    then = held(lab)
    for number in range(ROUNDS, 4 * ROUNDS):
        use(lab, number)
    assert eventually(lambda: held(lab).descriptors <= then.descriptors), (then, held(lab))
    now = held(lab)
    assert now.kinds == then.kinds
    assert now.threads == then.threads == 1
    assert now.resident_bytes - then.resident_bytes < 4 * 1024 * 1024
    assert wires(lab) == 0
    assert not lab.network._keeper._wards
    assert not lab.network._keeper._gate._waiting
