"""Settings, read once from a TOML file, then RINGFENCE_* variables, then flags; the later wins.

Only this module reads the environment. Unknown keys are refused with the list of known ones: a misspelt setting that
is ignored is a wall that is not there.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import ssl
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from ringfence.domain.egress import Floor, floor_from, policy_from
from ringfence.domain.errors import BadRequest
from ringfence.domain.gateways import Gateway, gateway_from
from ringfence.domain.limits import BOUNDS, WHOLE, Limits, limits_from
from ringfence.wire import DEFAULT_PORT

MIB: Final = 1024 * 1024
_PREFIX: Final = "RINGFENCE_"
_DOMAIN: Final = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\r\n]+-----END CERTIFICATE-----")
_TESTS: Final = "RINGFENCE_TEST_"  # the test suite's own switches; no setting of ours

# Where distributions keep the authorities they trust: Debian, Fedora, SUSE.
SYSTEM_ROOTS: Final = (
    Path("/etc/ssl/certs/ca-certificates.crt"),
    Path("/etc/pki/tls/certs/ca-bundle.crt"),
    Path("/etc/ssl/ca-bundle.pem"),
)

Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=86_400 * 3650)]
Kept = Annotated[int, msgspec.Meta(ge=100, le=100_000_000)]
S = TypeVar("S", bound="Settings")


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of both settings."""


def check_domain(what: str, name: str) -> None:
    """Refuse what is no domain in lower case. Raises BadRequest."""
    if not _DOMAIN.fullmatch(name) or len(name) > 200:
        raise BadRequest(f"settings: {what} {name!r:.80} is not a domain in lower case", code="bad_settings")


class TenantSettings(Settings, frozen=True):
    """One tenant's ceilings. `limits` are maxima per sandbox, by the names of `Limits`."""

    max_sandboxes: Count = 1000
    max_runs: Count = 1000
    max_requests: Count = 2000
    max_ttl_seconds: Positive = 86_400.0
    max_paused_bytes: Annotated[int, msgspec.Meta(ge=0)] = 10 * 1024 * MIB  # of all its paused sandboxes' files
    limits: dict[str, int | float] = {}
    egress_gateway: str = ""  # by which all its sandboxes leave

    def most(self) -> Limits | None:
        """The maxima as Limits, or None when none is set. Raises BadRequest for a bad one."""
        if not self.limits:
            return None
        widest: dict[str, Any] = {
            name: int(bound.most) if name in WHOLE else float(bound.most) for name, bound in BOUNDS.items()
        }
        return limits_from(dict(self.limits), Limits(**widest))


class EdgeSettings(Settings, frozen=True):
    """Where published ports are served, and within which bounds. `port` -1 is the api's own plus 1000, or any free one.

    With `certificate` and `certificate_key` (files in PEM; the first may hold a chain) the edge speaks TLS itself.
    `scheme` and `public_port` describe the address that users see, when a proxy stands in front.
    `serve_api` also answers for the API, at api.<domain> and where E2B's clients look for it.
    """

    enabled: bool = True
    domain: str = "sbx.localhost"
    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=-1, le=65_535)] = -1
    scheme: Literal["http", "https"] = "http"
    public_port: Port = 0
    trusted_proxies: list[str] = []
    path_hosts: list[str] = []
    path_browsers: bool = False
    certificate: str = ""
    certificate_key: str = ""
    serve_api: bool = False
    header_bytes: Annotated[int, msgspec.Meta(ge=1024, le=60 * 1024)] = 32 * 1024
    max_connections: Count = 2048
    max_handshakes: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 512
    connections_per_tenant: Count = 512
    connections_per_sandbox: Count = 128
    header_seconds: Positive = 10.0
    stall_seconds: Positive = 30.0
    idle_seconds: Positive = 300.0
    total_seconds: Positive = 14_400.0

    @property
    def behind_https(self) -> bool:
        """Whether a proxy in front speaks TLS, at its own usual port."""
        return self.scheme == "https" and not self.certificate

    @property
    def shown_scheme(self) -> str:
        """The scheme users see."""
        return "https" if self.certificate else self.scheme

    def check(self) -> None:
        """Refuse what is no domain, no network and half a certificate. Raises BadRequest."""
        check_domain("edge.domain", self.domain)
        if bool(self.certificate) != bool(self.certificate_key):
            raise BadRequest("settings: edge.certificate and edge.certificate_key go together", code="bad_settings")
        for network in self.trusted_proxies:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise BadRequest(f"settings: edge.trusted_proxies: {error}", code="bad_settings") from None


class EgressSettings(Settings, frozen=True):
    """What the operator says of sandboxes' networks, below every tenant's policy."""

    permit: list[str] = []  # private networks that may be reached all the same: an internal mirror, say
    deny: list[str] = []  # further networks that may not: a control plane at public addresses, say
    resolvers: list[str] = []  # addresses of name servers; the host's own otherwise
    learn: bool = False  # whether tenants may let a program reach everything above the floor, to learn its policy
    gateways: dict[str, dict[str, Any]] = {}  # by name: kind, address, port, username, password, tenants
    authorities: str = ""  # a file of the authorities by which the hosts of secrets are known; the system's otherwise

    def ways(self) -> dict[str, Gateway]:
        """The gateways by name. Raises BadRequest."""
        return {name: gateway_from(name, table) for name, table in self.gateways.items()}

    def floor(self) -> Floor:
        """The networks as a floor. Raises BadRequest."""
        for server in self.resolvers:
            try:
                ipaddress.ip_address(server)
            except ValueError as error:
                raise BadRequest(f"settings: egress.resolvers: {error}", code="bad_settings") from None
        return floor_from(self.deny, self.permit)

    def roots(self) -> bytes:
        """The authorities, as PEM; nothing where a system has none. Raises BadRequest for a named file that is none."""
        known = Path(self.authorities or ssl.get_default_verify_paths().openssl_cafile)
        places = [known] if self.authorities else [known, *SYSTEM_ROOTS]
        for place in places:
            with contextlib.suppress(OSError):
                found = _CERTIFICATE.findall(place.read_bytes())
                if found:
                    return b"\n".join(found) + b"\n"
        if self.authorities:
            raise BadRequest(f"settings: egress.authorities: {known} holds no certificate", code="bad_settings")
        return b""


_REGISTRY: Final = re.compile(r"(http://)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?")


class BuildSettings(Settings, frozen=True):
    """What templates tenants may build, through E2B's `Template.build`; bytes and files are of one tenant.

    `at_once` and `at_once_all`: builds of one tenant, and of all; each may take `cpus` and `memory_mib`.
    `seconds`, `step_seconds`, `ready_seconds`: of a whole build, one step, and until a start command is ready.
    `disk_mib`, `files`: what a build's root may hold, the template it builds upon included; it is in memory.
    `upload_mib`: one COPY's archive. `kept_mib`: archives and steps' outcomes, kept to be used again.
    `home_mib`, `home_files`: what a template may have in its home, of which every sandbox gets a copy.
    `templates`, `template_mib`: how many a tenant may have, and what they may take. `log_lines`: of one build.
    `upload_url`: how clients reach this server, where a proxy in front changes the Host they send.
    `registries`: what images are pulled from for tenants, by this server, whose address they see. "*": every registry
    at a public address, at port 443 with TLS. HOST[:PORT]: that one whatever its address, with http:// before it
    without TLS. Empty: none. `registry_seconds`: how long a registry may send next to nothing.
    `images_mib`: pulled images, kept to be used again while the server runs.
    """

    enabled: bool = True
    at_once: Count = 2
    at_once_all: Count = 4
    seconds: Positive = 1800.0
    step_seconds: Positive = 900.0
    ready_seconds: Positive = 60.0
    cpus: Positive = 2.0
    memory_mib: Count = 1024
    disk_mib: Count = 2048
    files: Count = 500_000
    upload_mib: Count = 512
    kept_mib: Count = 4096
    home_mib: Count = 256
    home_files: Count = 20_000
    templates: Count = 100
    template_mib: Count = 20_480
    log_lines: Count = 10_000
    upload_url: str = ""
    registries: list[str] = msgspec.field(default_factory=lambda: ["*"])
    images_mib: Count = 4096
    registry_seconds: Positive = 30.0


class E2bSettings(Settings, frozen=True):
    """How the E2B protocol is served, to E2B's own clients.

    `internet` is what "internet access" means here, an egress policy as a sandbox's own would be; empty: there is none.
    `out_ports` are those at which addresses in a sandbox's own allow list may be reached.
    `isolation` is what their sandboxes are isolated by. `limits` are what they get, within a tenant's maxima.
    `files_only_pause`: take a pause that does not say whether memory is kept for one that keeps files alone.
    `warm_kernels`: templates whose sandboxes start with a Python kernel, so that the first cell finds one: it costs
    each of them 30 ms of processor time and 11 MiB, whether or not cells come. Elsewhere the first cell starts it.
    """

    enabled: bool = True
    internet: dict[str, Any] = {}
    out_ports: list[Annotated[int, msgspec.Meta(ge=1, le=65_535)]] = msgspec.field(
        default_factory=lambda: [22, 80, 443]
    )
    isolation: str = "auto"
    files_only_pause: bool = False
    warm_kernels: list[str] = msgspec.field(default_factory=lambda: ["code-interpreter-v1"])
    limits: dict[str, int | float] = msgspec.field(
        default_factory=lambda: {"output_bytes": 1024 * MIB, "cpu_seconds": 86_400.0, "processes": 256}
    )

    builds: BuildSettings = BuildSettings()

    def check(self, floor: Floor) -> None:
        """Refuse limits and a policy that are none. Raises BadRequest."""
        limits_from(dict(self.limits), Limits())
        policy_from(self.internet or None, floor)
        for name in self.builds.registries:
            if name != "*" and not _REGISTRY.fullmatch(name):
                raise BadRequest(
                    f"e2b.builds.registries: {name!r:.80} is no registry",
                    code="bad_settings",
                    remediation='write HOST, HOST:PORT, http://HOST:PORT, or "*" for every public one',
                )


class ServerSettings(Settings, frozen=True):
    """What `ringfence serve` needs to know."""

    state: str = ""
    templates: str = ""
    host: str = "127.0.0.1"
    port: Port = DEFAULT_PORT
    allowed_hosts: list[str] = []
    runtimes: list[str] = []
    image_registries: list[str] = []  # at private addresses: HOST[:PORT], with http:// before one without TLS
    dev_domain: str = ""  # a name for this machine's users alone: TLS by a certificate authority of our own
    user: str = "ringfence"
    wait_seconds: Annotated[float, msgspec.Meta(gt=0, le=100)] = 10.0
    collected_bytes: Annotated[int, msgspec.Meta(ge=1024, le=1024 * MIB)] = 10 * MIB
    max_connections: Count = 4096
    header_seconds: Positive = 10.0
    body_seconds: Positive = 30.0
    stall_seconds: Positive = 30.0
    drain_seconds: Positive = 10.0
    keep_days: Positive = 30.0
    keep_paused_days: Positive = 30.0
    keep_runs: Kept = 200_000
    keep_events: Kept = 100_000
    tenant: TenantSettings = TenantSettings()
    tenants: dict[str, TenantSettings] = {}
    edge: EdgeSettings = EdgeSettings()
    egress: EgressSettings = EgressSettings()
    e2b: E2bSettings = E2bSettings()

    @property
    def state_dir(self) -> Path:
        """Where everything that outlives a restart is kept."""
        return Path(self.state) if self.state else default_state()

    @property
    def templates_dir(self) -> Path:
        """Where templates live; inside the state directory unless said otherwise."""
        return Path(self.templates) if self.templates else self.state_dir / "templates"

    @property
    def dev_dir(self) -> Path:
        """Where the certificate authority of the development domain is kept."""
        return self.state_dir / "dev" / self.dev_domain

    @property
    def node_socket(self) -> Path:
        """Where the node listens."""
        return self.state_dir / "node" / "node.sock"

    @property
    def database(self) -> Path:
        """The store's file."""
        return self.state_dir / "api" / "ringfence.db"

    @property
    def builds(self) -> Path:
        """Where builds' uploads and steps' outcomes are kept while the server runs."""
        return self.state_dir / "builds"

    @property
    def paused(self) -> Path:
        """Where paused sandboxes' files are kept."""
        return self.state_dir / "paused"

    def of(self, tenant: str) -> TenantSettings:
        """A tenant's ceilings, its own or the default."""
        return self.tenants.get(tenant, self.tenant)


class ClientSettings(Settings, frozen=True):
    """What the CLI needs to reach a server. An empty `url` means: none is configured."""

    url: str = ""
    key: str = ""
    timeout_seconds: Positive = 330.0


_ELSEWHERE: Final = frozenset({"CONFIG", "CLIENT_CONFIG"})
_KNOWN: Final = (
    frozenset(name.upper() for kind in (ServerSettings, ClientSettings) for name in kind.__struct_fields__) | _ELSEWHERE
)
_LISTS: Final = frozenset({"allowed_hosts", "runtimes", "image_registries"})
_TEXT: Final = frozenset({"state", "templates", "host", "dev_domain", "user", "url", "key"})


def default_state() -> Path:
    """Where state is kept when nobody says: the system's place for root, the user's own otherwise."""
    if os.geteuid() == 0:
        return Path("/var/lib/ringfence")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "ringfence"


def default_file(name: str) -> Path:
    """Where a settings file is looked for: /etc for root's server, the user's own place otherwise."""
    if os.geteuid() == 0 and name == "server.toml":
        return Path("/etc/ringfence") / name
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "ringfence" / name


def _from_file(path: Path, *, must_exist: bool) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if must_exist:
            raise BadRequest(f"settings file {path} does not exist", code="bad_settings") from None
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"settings file {path} cannot be read: {error}", code="bad_settings") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadRequest(f"settings file {path} is not TOML: {error}", code="bad_settings") from None


def _from_env(kind: type[Settings], environ: Mapping[str, str]) -> dict[str, Any]:
    ours = {name for name in environ if name.startswith(_PREFIX) and not name.startswith(_TESTS)}
    unknown = sorted(name for name in ours if name.removeprefix(_PREFIX) not in _KNOWN)
    if unknown:
        raise BadRequest(
            f"unknown settings in the environment: {', '.join(unknown)}",
            code="bad_settings",
            remediation=f"known are {', '.join(sorted(_PREFIX + name for name in _KNOWN))}",
        )
    values: dict[str, Any] = {}
    for name in kind.__struct_fields__:
        text = environ.get(_PREFIX + name.upper())
        if text is not None:
            values[name] = _value(name, text)
    return values


def _value(name: str, text: str) -> Any:
    if name in _LISTS:
        return [part.strip() for part in text.split(",") if part.strip()]
    if name in _TEXT:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # the decoder below names the setting and the type it wants


def _build(kind: type[S], *layers: Mapping[str, Any]) -> S:
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update(layer)
    try:
        return msgspec.convert(merged, kind)
    except msgspec.ValidationError as error:
        raise BadRequest(
            f"settings: {error}",
            code="bad_settings",
            remediation=f"known are {', '.join(kind.__struct_fields__)}",
        ) from None


def _flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}


def read_server(file: str | None = None, *, environ: Mapping[str, str] | None = None, **flags: Any) -> ServerSettings:
    """The server's settings. Raises BadRequest for an unknown or bad one; a flag of None is absent."""
    environ = os.environ if environ is None else environ
    named = file or environ.get(_PREFIX + "CONFIG")
    table = _from_file(Path(named) if named else default_file("server.toml"), must_exist=bool(named))
    settings = _developing(_build(ServerSettings, table, _from_env(ServerSettings, environ), _flags(flags)))
    for ceiling in (settings.tenant, *settings.tenants.values()):
        ceiling.most()
    settings.edge.check()
    settings.e2b.check(settings.egress.floor())
    _check_gateways(settings)
    settings.egress.roots()
    return settings


def _developing(settings: ServerSettings) -> ServerSettings:
    """With a development domain, the edge speaks TLS for it and serves the API too. Raises BadRequest."""
    if not settings.dev_domain:
        return settings
    check_domain("dev_domain", settings.dev_domain)
    place = settings.dev_dir
    edge = msgspec.structs.replace(
        settings.edge,
        domain=settings.dev_domain,
        certificate=str(place / "server.crt"),
        certificate_key=str(place / "server.key"),
        serve_api=True,
    )
    return msgspec.structs.replace(settings, edge=edge)


def _check_gateways(settings: ServerSettings) -> None:
    """A tenant that must leave by a gateway which is not there could not leave at all: say so before serving."""
    ways = settings.egress.ways()
    wanted = {"tenant": settings.tenant.egress_gateway}
    wanted |= {f"tenants.{name}": tenant.egress_gateway for name, tenant in settings.tenants.items()}
    for where, name in wanted.items():
        if name and name not in ways:
            raise BadRequest(
                f"settings: {where}.egress_gateway {name!r:.80} is not defined",
                code="bad_settings",
                remediation=f"define it as [egress.gateways.{name:.80}]",
            )


def read_client(file: str | None = None, *, environ: Mapping[str, str] | None = None, **flags: Any) -> ClientSettings:
    """The client's settings. Raises BadRequest for an unknown or bad one; a flag of None is absent."""
    environ = os.environ if environ is None else environ
    named = file or environ.get(_PREFIX + "CLIENT_CONFIG")
    table = _from_file(Path(named) if named else default_file("client.toml"), must_exist=bool(named))
    return _build(ClientSettings, table, _from_env(ClientSettings, environ), _flags(flags))
