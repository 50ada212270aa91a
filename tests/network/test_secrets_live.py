"""Secrets at the proxy, with real servers: the value goes to its host and nowhere else, and placeholders go nowhere."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringfence.domain.errors import SandboxRefused
from ringfence.network.gate.confine import UID
from ringfence.network.openers import FIRST_UID, Openers
from tests.network.lab import ALLOWED, Lab, everything, get, tls_client
from tests.network.secretslab import API, AT, OTHER, UNTRUSTED, VALUE, Hosts, entrusted, held, inside, request
from tests.network.test_egress_live import eventually
from tests.network.test_gate_posture import status_of

GOOD = "good.example.com"


@pytest.fixture(scope="module")
def hosts(lab: Lab) -> Iterator[Hosts]:
    """The hosts of secrets."""
    made = Hosts(lab)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _fresh(hosts: Hosts) -> None:
    for kept in hosts.kept.values():
        kept.clear()


def bearer(placeholder: str, extra: str = "Connection: close\r\n") -> str:
    """A header as clients write it."""
    return f"Authorization: Bearer {placeholder}\r\n{extra}"


def test_a_value_takes_the_place_of_its_placeholder(lab: Lab, hosts: Hosts) -> None:
    """In the header it belongs into, at its host; the event names the secret and says how many bytes went."""
    sandbox, secret = lab.sandbox("used"), held()
    entrusted(lab, sandbox, secret)
    answer = request(sandbox, API, get(API, "/v1", extra=bearer(secret.placeholder)))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nok")
    [sent] = hosts.kept[API]
    assert (sent.header("authorization"), sent.header("host")) == (f"Bearer {VALUE}", API)
    assert eventually(lambda: lab.told(sandbox="used", secrets="api"))
    [event] = lab.told(sandbox="used", secrets="api")
    assert (event["verdict"], event["name"], event["address"], event["port"]) == ("allowed", API, AT[API], 443)
    assert event["sent"] > 500
    assert event["received"] > 500
    assert VALUE not in json.dumps(lab.events)


def openers(lab: Lab) -> list[int]:
    """The processes that know secrets."""
    found: list[int] = lab.do(lab.network.status())["openers"]
    return found


def post(host: str, path: str, body: bytes, extra: str = "") -> bytes:
    """A request with a body."""
    return get(host, path, "POST", f"Content-Length: {len(body)}\r\nConnection: close\r\n{extra}") + body


# -- where a value goes -----------------------------------------------------------------------------------------------


def test_each_place_in_a_request(lab: Lab, hosts: Hosts) -> None:
    """A header, a field of the query, the password of basic authentication, a body; each as it must be there."""
    sandbox, odd = lab.sandbox("places"), 'p"ss & w\\rd/1'
    secret = held("api", "header authorization", "header x-key", "query key", "body", value=odd)
    entrusted(lab, sandbox, secret)
    mark = secret.placeholder
    basic = base64.b64encode(f"user:{mark}".encode()).decode()
    request(
        sandbox,
        API,
        get(API, f"/q?a=1&key={mark}&b=%20", extra=f"Authorization: Basic {basic}\r\nConnection: close\r\n"),
    )
    request(sandbox, API, post(API, "/json", b'{"k": "%b"}' % mark.encode(), "Content-Type: application/json\r\n"))
    form = "Content-Type: application/x-www-form-urlencoded; charset=utf-8\r\n"
    request(sandbox, API, post(API, "/form", b"a=1&k=%b&z=2" % mark.encode(), form))
    request(sandbox, API, post(API, "/text", mark.encode() * 2, f"X-Key: {mark};{mark}\r\n"))
    query, in_json, in_form, text = hosts.kept[API]
    assert query.target == "/q?a=1&key=p%22ss%20%26%20w%5Crd%2F1&b=%20"
    assert query.header("authorization") == "Basic " + base64.b64encode(f"user:{odd}".encode()).decode()
    assert json.loads(in_json.body) == {"k": odd}
    assert in_json.header("content-length") == str(len(in_json.body))
    assert in_form.body == b"a=1&k=p%22ss+%26+w%5Crd%2F1&z=2"
    assert (text.body, text.header("x-key")) == (odd.encode() * 2, f"{odd};{odd}")


def test_a_body_in_chunks_cut_through_a_placeholder(lab: Lab, hosts: Hosts) -> None:
    """It is read before it is believed: how it was cut makes no difference."""
    sandbox, secret = lab.sandbox("chunks"), held("api", "body")
    entrusted(lab, sandbox, secret)
    pieces = [b"x" * 10, *(bytes([c]) for c in secret.placeholder.encode()), b"y" * 10]
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    request(sandbox, API, get(API, "/c", "POST", "Transfer-Encoding: chunked\r\nConnection: close\r\n") + body)
    [sent] = hosts.kept[API]
    assert sent.body == b"x" * 10 + VALUE.encode() + b"y" * 10


def test_many_requests_on_one_connection(lab: Lab, hosts: Hosts) -> None:
    """Kept open between them, answered in order when they come all at once, each with its own value in it."""
    sandbox, secret = lab.sandbox("kept"), held()
    entrusted(lab, sandbox, secret)
    with inside(sandbox, API) as connection:
        for number in range(3):
            connection.sendall(get(API, f"/{number}", extra=bearer(secret.placeholder, "")))
            answer = connection.recv(65_536)
            while not answer.endswith(b"ok"):
                answer += connection.recv(65_536)
        ahead = b"".join(get(API, f"/echo{n}", extra=bearer(secret.placeholder, "")) for n in range(4))
        connection.sendall(ahead + get(API, "/last", extra=bearer(secret.placeholder)))
        answers = everything(connection)
    assert [answers.index(b"GET /echo%d" % n) for n in range(4)] == sorted(
        answers.index(b"GET /echo%d" % n) for n in range(4)
    )
    assert answers.endswith(b"ok")
    assert {sent.header("authorization") for sent in hosts.kept[API]} == {f"Bearer {VALUE}"}
    assert len(hosts.kept[API]) == 8


def test_a_large_body_passes_and_is_watched(lab: Lab, hosts: Hosts) -> None:
    """Five mebibytes arrive whole; a placeholder so deep in a body is not replaced, so it is refused."""
    sandbox, secret = lab.sandbox("large"), held("api", "header authorization", "body")
    entrusted(lab, sandbox, secret)
    body = os.urandom(5 << 20)
    answer = request(sandbox, API, post(API, "/up", body, f"Authorization: {secret.placeholder}\r\n"))
    assert answer.endswith(b"ok")
    assert hosts.kept[API][0].body == body
    assert hosts.kept[API].pop().header("authorization") == VALUE
    deep = body[: 3 << 20] + secret.placeholder.encode() + body[3 << 20 :]
    answer = request(sandbox, API, post(API, "/deep", deep))
    assert b"403 Forbidden" in answer
    assert b"cannot be, replaced" in answer
    assert not hosts.kept[API]
    assert eventually(lambda: lab.told(sandbox="large", verdict="denied", misdirected="api"))


def test_a_client_that_waits_to_be_told_to_go_on(lab: Lab, hosts: Hosts) -> None:
    """Expect: 100-continue is answered here, where the body is read."""
    sandbox, secret = lab.sandbox("expect"), held("api", "body")
    entrusted(lab, sandbox, secret)
    with inside(sandbox, API) as connection:
        extra = f"Content-Length: {len(secret.placeholder)}\r\nExpect: 100-continue\r\nConnection: close\r\n"
        connection.sendall(get(API, "/e", "PUT", extra))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(secret.placeholder.encode())
        assert everything(connection).endswith(b"ok")
    assert hosts.kept[API][0].body == VALUE.encode()


# -- where it does not go ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        get(API, "/", extra="X-Other: {0}\r\n"),
        get(API, "/", extra="Cookie: a={0}\r\n"),
        get(API, "/", extra="{0}: x\r\n"),
        get(API, "/", extra="Proxy-Authorization: {0}\r\n"),
        get(API, "/{0}/x"),
        get(API, "/?{0}=x"),
        get(API, "/?other={0}"),
        get(API, "/?key={0}"),
        post(API, "/", b"...{0}..."),
        get(API, "/", extra="Authorization: Bearer rf-placeholder-ffffffffffffffffffffffffffffffff\r\n"),
    ],
)
def test_a_placeholder_in_another_place_is_refused(lab: Lab, hosts: Hosts, text: bytes) -> None:
    """403 with the reason, an event that names the secret, and nothing reaches even its own host."""
    sandbox, secret = lab.sandbox("misplaced"), held()
    entrusted(lab, sandbox, secret)
    filled = text.replace(b"{0}", secret.placeholder.encode())
    if b"Content-Length: 9" in filled:
        filled = filled.replace(b"Content-Length: 9", b"Content-Length: %d" % (6 + len(secret.placeholder)))
    answer = request(sandbox, API, filled)
    assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\nX-Ringfence: denied\r\n"), answer
    assert b"placeholder" in answer or b"does not belong into" in answer
    assert not hosts.kept[API]
    assert eventually(lambda: lab.told(sandbox="misplaced", verdict="denied", name=API))


def test_the_placeholder_of_another_host(lab: Lab, hosts: Hosts) -> None:
    """Where both hosts have secrets, neither is sent the other's; a wildcard covers what is below it and no more."""
    sandbox = lab.sandbox("two")
    mine, others = held("api"), held("other", hosts=(OTHER, "*.below.example.com"), value=VALUE[::-1], number=2)
    entrusted(lab, sandbox, mine, others)
    for host, wrong in ((API, others), (OTHER, mine)):
        answer = request(sandbox, host, get(host, "/", extra=bearer(wrong.placeholder)))
        assert f"secret {wrong.name} is not bound to {host}".encode() in answer
        assert eventually(lambda name=wrong.name, at=host: lab.told(misdirected=name, name=at))
    assert not any(hosts.kept.values())
    assert others.bound_to("a.b.below.example.com")
    assert not others.bound_to("below.example.com")
    assert not others.bound_to("xbelow.example.com")


AMBIGUOUS = [
    get("evil.example.net"),
    get(API + ":8443"),
    get(API + "."),
    get("x@" + API),
    f"GET / HTTP/1.1\r\nHost: {API}\r\nHost: {API}\r\n\r\n".encode(),
    b"GET / HTTP/1.1\r\nX: y\r\n\r\n",
    get(API, f"https://{OTHER}/"),
    get(API, "//x y"),
    get(API, "/", "CONNECT"),
    get(API, "/", "TRACE"),
    get(API, "/", extra="Content-Length: 3\r\nTransfer-Encoding: chunked\r\n") + b"0\r\n\r\n",
    get(API, "/", extra="Content-Length: 3\r\nContent-Length: 4\r\n") + b"abc",
    get(API, "/", extra="Content-Length: +3\r\n") + b"abc",
    get(API, "/", extra="Transfer-Encoding: gzip, chunked\r\n") + b"0\r\n\r\n",
    get(API, "/", extra="Transfer-Encoding : chunked\r\n") + b"0\r\n\r\n",
    get(API, "/", extra="A: b\r\n folded: c\r\n"),
    get(API, "/", extra="A: b\nB: c\r\n"),
    get(API, "/", extra="A\0: b\r\n"),
    get(API, "/", extra="Upgrade: websocket\r\nConnection: Upgrade\r\n"),
    get(API, "/", extra="Upgrade: h2c\r\n"),
    get(API, "/", extra=f"X: {'y' * 70_000}\r\n"),
    get(API, "/", extra="".join(f"X{n}: y\r\n" for n in range(200))),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    f"GET / HTTP/3.0\r\nHost: {API}\r\n\r\n".encode(),
    f"GET /\r\nHost: {API}\r\n\r\n".encode(),
]


@pytest.mark.parametrize("text", AMBIGUOUS, ids=range(len(AMBIGUOUS)))
def test_what_could_be_read_in_two_ways_is_refused(lab: Lab, hosts: Hosts, text: bytes) -> None:
    """Another host inside than the connection's, two framings, folded or broken lines: nothing is sent on."""
    sandbox, secret = lab.sandbox("smuggler"), held()
    entrusted(lab, sandbox, secret)
    filled = text.replace(b"\r\n", f"\r\nAuthorization: Bearer {secret.placeholder}\r\n".encode(), 1)
    answer = request(sandbox, API, filled)
    assert answer[9:10] in {b"4", b"5"}, answer
    assert b"X-Ringfence: denied" in answer
    assert not any(hosts.kept.values())
    assert eventually(lambda: lab.told(sandbox="smuggler", verdict="denied"))
    assert "secrets" not in lab.told(sandbox="smuggler", verdict="denied")[0]


@pytest.mark.parametrize("broken", [b"zz\r\n", b"-1\r\n", b"5\r\nabcdeXX", b"5;ext=1\r\nabcde\r\n0\r\n\r\n"])
def test_a_broken_chunk_is_refused(lab: Lab, hosts: Hosts, broken: bytes) -> None:
    """The host never sees the end of such a request."""
    sandbox, secret = lab.sandbox("broken"), held("api", "header authorization", "body")
    entrusted(lab, sandbox, secret)
    extra = f"Transfer-Encoding: chunked\r\n{bearer(secret.placeholder)}"
    answer = request(sandbox, API, get(API, "/", "POST", extra) + broken)
    assert b"X-Ringfence: denied" in answer
    assert not hosts.kept[API]


def test_a_host_that_cannot_prove_who_it_is(lab: Lab, hosts: Hosts) -> None:
    """Its certificate is for others: no request is sent, the program reads 502 and why, the event says failed."""
    sandbox, secret = lab.sandbox("untrusted"), held("api", hosts=(UNTRUSTED,))
    entrusted(lab, sandbox, secret)
    answer = request(sandbox, UNTRUSTED, get(UNTRUSTED, "/", extra=bearer(secret.placeholder)))
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert b"the certificate of untrusted.example.org is not accepted" in answer
    assert not hosts.kept[UNTRUSTED]
    assert eventually(lambda: lab.told(sandbox="untrusted", verdict="failed"))
    assert "secrets" not in lab.told(sandbox="untrusted", verdict="failed")[0]


def test_other_connections_stay_closed_to_us(lab: Lab, hosts: Hosts) -> None:
    """A host without a secret shows its own certificate, end to end; so it does to everybody else."""
    sandbox, other = lab.sandbox("closed"), lab.sandbox("without", [API, GOOD])
    entrusted(lab, sandbox, held(), policy=[GOOD])
    sandbox.addresses(GOOD)
    with tls_client(lab, sandbox, ALLOWED, GOOD) as connection:
        connection.sendall(get(GOOD, "/end-to-end", extra="Connection: close\r\n"))
        assert b"/end-to-end" in everything(connection)
    other.addresses(API)
    with tls_client(lab, other, AT[API], API) as connection:
        connection.sendall(get(API, "/", extra="Connection: close\r\n"))
        assert b"200 OK" in everything(connection)
    sandbox.addresses(API)
    with pytest.raises(ssl.SSLCertVerificationError):
        tls_client(lab, sandbox, AT[API], API).close()


# -- what comes back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/echo", "/echo-chunks"])
def test_a_host_that_echoes_shows_asterisks(lab: Lab, hosts: Hosts, path: str) -> None:
    """In headers and body, however it is cut, as it is or in the usual other spellings; lengths stay true."""
    sandbox = lab.sandbox("echo")
    secret = held("api", "header authorization", "query key", "body", value='quo"ted value+1/2')
    entrusted(lab, sandbox, secret)
    mark = secret.placeholder
    basic = base64.b64encode(f"u:{mark}".encode()).decode()
    body = f'{{"a": "{mark}"}}'.encode()
    extra = f"Authorization: Basic {basic}\r\nContent-Type: application/json\r\nAccept-Encoding: gzip\r\n"
    text = post(API, f"{path}?key={mark}", body, extra).replace(
        f"{path}?key={mark}".encode(), f"/echo?key={mark}&as={path}".encode()
    )
    answer = request(sandbox, API, text)
    assert answer.count(b"*" * 16) >= 4
    for form in (b'quo"ted', b"quo%22ted", b'quo\\"ted', base64.b64encode(b'u:quo"ted value+1/2')):
        assert form not in answer
    assert hosts.kept[API][0].header("accept-encoding") == "identity"


# -- its life ---------------------------------------------------------------------------------------------------------


def test_an_opener_has_given_up_everything(lab: Lab, hosts: Hosts) -> None:
    """One for each tenant: a uid of its own, no capability, a filter, an empty root, a namespace without a network."""
    mine, theirs = lab.sandbox("mine"), lab.sandbox("theirs")
    entrusted(lab, mine, held(), tenant="a")
    entrusted(lab, theirs, held(), tenant="b")
    found = openers(lab)
    uids = set()
    for pid in found:
        status = status_of(pid)
        uids.add(int(status["Uid"].split()[0]))
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[name], 16) == 0
        assert (status["NoNewPrivs"], status["Seccomp"], status["Threads"], status["Groups"]) == ("1", "2", "1", "")
        assert os.listdir(f"/proc/{pid}/root") == []
        for kind in ("net", "mnt", "ipc", "uts", "cgroup"):
            assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
        assert Path(f"/proc/{pid}/net/dev").read_text().count(":") == 1
        assert "up" not in Path(f"/proc/{pid}/net/fib_trie").read_text()
        assert (
            VALUE.encode() not in Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
        )
    assert len(uids) == len(found) >= 2
    assert UID not in uids
    assert min(uids) >= FIRST_UID


def test_an_opener_that_dies_takes_its_connections_and_no_more(lab: Lab, hosts: Hosts) -> None:
    """What it had open breaks off; the next one knows everything before it serves. The same when the gate dies."""
    sandbox, secret = lab.sandbox("dies"), held()
    entrusted(lab, sandbox, secret, tenant="mortal")
    text = get(API, "/", extra=bearer(secret.placeholder))
    for victim in (lambda: openers(lab)[-1], lambda: lab.do(lab.network.status())["gate"]):
        before = openers(lab)[-1]
        with inside(sandbox, API) as connection:
            os.kill(victim(), signal.SIGKILL)
            assert b"200 OK" not in _quietly(connection, text)
        assert eventually(lambda old=before: openers(lab)[-1] not in {0, old})
        assert eventually(lambda: _answers(sandbox, text))
    assert VALUE not in json.dumps(lab.events)


def _quietly(connection: ssl.SSLSocket, text: bytes) -> bytes:
    try:
        connection.sendall(text)
        return connection.recv(100)
    except OSError:
        return b""


def _answers(sandbox: object, text: bytes) -> bool:
    try:
        return request(sandbox, API, text).endswith(b"ok")  # type: ignore[arg-type]
    except OSError:
        return False


def test_a_changed_policy_cuts_an_opened_connection(lab: Lab, hosts: Hosts) -> None:
    """Before the call returns: at the sandbox's end and at the host's."""
    sandbox, secret = lab.sandbox("cut"), held("api", hosts=(API,))
    entrusted(lab, sandbox, secret)
    with inside(sandbox, API) as connection:
        connection.sendall(get(API, "/", extra=bearer(secret.placeholder, "")))
        answer = b""
        while not answer.endswith(b"\r\nok"):
            answer += connection.recv(65_536)
        sandbox.allow([GOOD])
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""
    assert eventually(lambda: lab.told(sandbox="cut", verdict="cut", secrets="api"))
    with pytest.raises(OSError, match=r"."):
        inside(sandbox, API).close()


def test_fifty_at_once(lab: Lab, hosts: Hosts) -> None:
    """Connections of two sandboxes of two tenants, each with its own value, none mixed up."""
    places = []
    for number, tenant in enumerate(("left", "right")):
        sandbox = lab.sandbox(f"at-once-{tenant}")
        secret = held("api", value=f"{tenant}-value-0123456789", number=number + 10)
        entrusted(lab, sandbox, secret, tenant=tenant)
        places.append((sandbox, secret, tenant))
    answers: list[bytes] = []

    def one(number: int) -> None:
        sandbox, secret, tenant = places[number % 2]
        text = get(API, f"/{tenant}/{number}", extra=bearer(secret.placeholder))
        answers.append(request(sandbox, API, text))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 50
    assert all(answer.endswith(b"ok") for answer in answers)
    for sent in hosts.kept[API]:
        assert sent.header("authorization") == f"Bearer {sent.target.split('/')[1]}-value-0123456789"
    assert len(hosts.kept[API]) == 50


def test_a_host_without_authorities_has_no_secrets(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no server could be known, none is believed: the opener does not start, and says so."""
    empty = tmp_path / "none.pem"
    empty.write_text("")

    async def tried() -> None:
        made = Openers(str(empty), lab.network._keeper.introduce, lab.network._keeper.ready)
        try:
            await made.entrust("t", "s", None)  # type: ignore[arg-type]
        finally:
            await made.close()

    monkeypatch.setattr("ringfence.network.kept.READY_SECONDS", 1.5)
    with pytest.raises(SandboxRefused, match="the opener does not start"):
        lab.do(tried())


def test_a_sandbox_that_ends_leaves_no_secret(lab: Lab, hosts: Hosts) -> None:
    """Its placeholder is worth nothing to the next one at its address."""
    first, secret = lab.sandbox("first"), held()
    entrusted(lab, first, secret, tenant="leaves")
    assert request(first, API, get(API, "/", extra=bearer(secret.placeholder))).endswith(b"ok")
    assert lab.network._openers.trust_of("first") is not None
    lab.sandboxes.remove(first)
    first.close()
    assert lab.network._openers.trust_of("first") is None
    second = lab.sandbox("second")
    entrusted(lab, second, held("another", number=3), tenant="leaves")
    answer = request(second, API, get(API, "/", extra=bearer(secret.placeholder)))
    assert b"a placeholder that is none of this sandbox" in answer
    assert len(hosts.kept[API]) == 1
