"""The Debian layer of a template: a lean root file system by mmdebstrap, from the mirror the host itself uses."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from ringfence.domain.errors import BadRequest, PlatformFault
from ringfence.templates import commands
from ringfence.templates.progress import Progress, Report

# Debian 13: its Python 3.13 counts references on far fewer shared objects than 3.11, so a fork copies a fifth fewer
# pages and starts a tenth sooner.
SUITE: Final = "trixie"
KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
POCKETS: Final = ("", "-updates", "-security")
# What every template has beside Debian's essential packages. Wheels are allowed to expect libstdc++.
FOUNDATION: Final = ("ca-certificates", "less", "libstdc++6", "mawk", "python3")

# mmdebstrap's own filter for unwanted files is slow, so they are unpacked and removed when all is done.
SETUP_HOOK: Final = (
    'for d in bin sbin lib lib64; do mkdir -p "$1/usr/$d" && ln -s "usr/$d" "$1/$d"; done; '
    'mkdir -p "$1/etc/apt/preferences.d"; '
    # usrmerge would bring all of Perl along; the four links above make it needless.
    '(echo "Package: usrmerge"; echo "Pin: release *"; echo "Pin-Priority: -1")'
    ' > "$1/etc/apt/preferences.d/ringfence"'
)
EXTRACT_HOOK: Final = (
    '(echo "path-exclude=/usr/share/man/*"; echo "path-exclude=/usr/share/doc/*";'
    ' echo "path-exclude=/usr/share/locale/*"; echo force-unsafe-io) > "$1/etc/dpkg/dpkg.cfg.d/ringfence"'
)

# How far mmdebstrap is when it says this; measured on two cores.
MARKS: Final = (
    ("running apt-get update", 0.02, "fetching package lists"),
    ("downloading packages", 0.14, "downloading packages"),
    ("extracting archives", 0.18, "unpacking"),
    ("installing essential", 0.34, "installing the essential packages"),
    ("installing remaining", 0.60, "installing the other packages"),
    ("cleaning package lists", 0.98, "cleaning up"),
)
ONE_LINE: Final = re.compile(r"deb\s+(?:\[(?P<options>[^\]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.+)")


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    """Read deb822 text: paragraphs of `Field: value`, continued on indented lines."""
    for paragraph in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in paragraph.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace():
                fields[name] = f"{fields.get(name, '')} {line.strip()}"
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.lower()
                fields[name] = value.strip()
        yield fields


def _from_deb822(text: str) -> Iterator[str]:
    for fields in _stanzas(text):
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() == "no":
            continue
        signed = fields.get("signed-by", "")
        option = f"[signed-by={signed}] " if re.fullmatch(r"/\S+", signed) else ""
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield f"deb {option}{uri} {suite} {fields.get('components', '')}"


def _wanted(line: str, suite: str) -> bool:
    found = ONE_LINE.match(line)
    suites = {suite + pocket for pocket in POCKETS}
    return bool(found and found["suite"] in suites and "main" in found["components"].split())


def sources_from(texts: Iterable[tuple[str, str]], suite: str = SUITE) -> list[str]:
    """Choose the lines that bring plain Debian out of apt's source files, given as (file name, text).

    A third party's archive often uses Debian's suite names; one that names its own key is left out.
    """
    lines: list[str] = []
    for name, text in texts:
        entries = _from_deb822(text) if name.endswith(".sources") else (line.strip() for line in text.splitlines())
        lines += [line for line in entries if _wanted(line, suite)]
    own = [line for line in lines if "signed-by" not in line or "debian-archive" in line] or lines
    return own if any(f" {suite} " in line for line in own) else []


def of_our_suite(line: str, suite: str) -> str:
    """The same mirror, asked for our suite: a host of another release has its own in its files."""
    return re.sub(rf" {suite}((?:-updates|-security)?) ", rf" {SUITE}\1 ", line, count=1)


def default_sources() -> list[str]:
    """Return Debian's own mirror, for a host that is not the same Debian."""
    option = f"[signed-by={KEYRING}] " if Path(KEYRING).is_file() else ""
    archive = [f"deb {option}http://deb.debian.org/debian {SUITE}{pocket} main" for pocket in POCKETS[:2]]
    return [*archive, f"deb {option}http://deb.debian.org/debian-security {SUITE}{POCKETS[2]} main"]


def _host_suite(os_release: Path = Path("/etc/os-release")) -> str:
    text = os_release.read_text() if os_release.is_file() else ""
    found = re.search(r'^VERSION_CODENAME="?([a-z]+)', text, re.MULTILINE)
    return found[1] if found and re.search(r'^ID="?debian"?$', text, re.MULTILINE) else ""


def host_sources(apt: Path = Path("/etc/apt")) -> list[str]:
    """Return the mirror this host gets Debian from, asked for our suite; Debian's own when it is no Debian."""
    suite = _host_suite()
    if not suite:
        return default_sources()
    files = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]
    readable = [file for file in files if file.is_file() and file.suffix in {".list", ".sources"}]
    lines = sources_from(((file.name, file.read_text()) for file in readable), suite)
    return [of_our_suite(line, suite) for line in lines] or default_sources()


def _host_options() -> list[str]:
    """Return the host's apt settings for the network: proxies, certificates, retries."""
    if shutil.which("apt-config", path=commands.PATH) is None:
        return []
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
    lines = re.findall(r'^(Acquire::(?:https?|Retries|ForceIPv[46])\S* ".+");$', dump, re.MULTILINE)
    return [f"--aptopt={line}" for line in lines]


def _bootstrap_argv(packages: Iterable[str], mode: str, target: str) -> list[str]:
    return [
        "mmdebstrap",
        f"--mode={mode}",
        "--variant=essential",
        f"--include={','.join(sorted({*FOUNDATION, *packages}))}",
        f"--setup-hook={SETUP_HOOK}",
        f"--extract-hook={EXTRACT_HOOK}",
        "--skip=check/signed-by,output/dev",
        *_host_options(),
        SUITE,
        target,
        *host_sources(),
    ]


def _teller(report: Report) -> commands.OnLine:
    def tell(line: str) -> None:
        for words, fraction, text in MARKS:
            if line.startswith("I: ") and words in line:
                report(Progress("debian", fraction, text))

    return tell


def _check_tools() -> None:
    if shutil.which("mmdebstrap", path=commands.PATH) is None:
        raise PlatformFault("mmdebstrap is not installed", code="mmdebstrap_missing", remediation="run: make setup")
    if os.geteuid() != 0 and (missing := _missing_for_unprivileged()):
        raise PlatformFault(
            f"building a template without root needs {missing}",
            code="rootless_build_impossible",
            remediation="install the package uidmap and give this user a range in /etc/subuid and /etc/subgid,"
            " or build as root",
        )


def _missing_for_unprivileged() -> str:
    """Return what an unprivileged mmdebstrap lacks on this host; empty when it lacks nothing."""
    if shutil.which("newuidmap", path=commands.PATH) is None:
        return "newuidmap"
    uid = os.getuid()
    names = (f"{uid}:", f"{pwd.getpwuid(uid).pw_name}:")
    for table in (Path("/etc/subuid"), Path("/etc/subgid")):
        if not table.is_file() or not any(line.startswith(names) for line in table.read_text().splitlines()):
            return f"a range for this user in {table}"
    return ""


def _refusal(failed: commands.CommandError, packages: Iterable[str]) -> BadRequest | PlatformFault:
    """Tell a name that Debian does not have from a mirror or tool that failed."""
    for line in failed.tail:
        missing = re.search(r"Unable to locate package (\S+)|Package '?([^\s']+)'? has no installation candidate", line)
        if missing and (name := missing[1] or missing[2]) in packages:
            return BadRequest(
                f"Debian {SUITE} has no package {name}", code="package_not_found", remediation="correct the template"
            )
    return PlatformFault(
        f"mmdebstrap failed: {failed.last_words('E:', 'Err:')}",
        code="bootstrap_failed",
        remediation="check that this machine reaches its Debian mirror: apt-get update",
    )


def bootstrap(packages: tuple[str, ...], root: Path, report: Report) -> None:
    """Make `root` a Debian with the foundation and `packages`. Raises BadRequest for an unknown package."""
    _check_tools()
    report(Progress("debian", 0.0, "starting mmdebstrap"))
    try:
        if os.geteuid() == 0:
            argv = [*commands.FENCED, *_bootstrap_argv(packages, "root", str(root))]
            # Its own temporary files lie beside the root, so that a killed build's are swept with it.
            commands.run(argv, on_line=_teller(report), env={"TMPDIR": str(root.parent)}, program="mmdebstrap")
        else:
            _bootstrap_unprivileged(packages, root, report)
    except commands.CommandError as failed:
        raise _refusal(failed, packages) from failed


def _bootstrap_unprivileged(packages: tuple[str, ...], root: Path, report: Report) -> None:
    """Let mmdebstrap work in its own user namespace and unpack its archive as ourselves: one owner, no devices."""
    archive = root.with_suffix(".tar")
    argv = [*commands.DIES_WITH_US, *_bootstrap_argv(packages, "unshare", str(archive))]
    commands.run(argv, on_line=_teller(report), program="mmdebstrap")
    root.mkdir(mode=0o755)
    unpack = ["tar", "-x", "-f", str(archive), "-C", str(root), "--no-same-owner", "--exclude=./dev/*"]
    commands.run(unpack, program="tar")
    archive.unlink()
