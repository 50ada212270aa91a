"""Destinations that go by one name: for each, what the service needs and why. Data, and nothing else.

A line is (name, ports, protocol, reason). Names are exact wherever the service has a fixed set of them. Everything
here lets a sandbox send as well as receive: a registry or a code host accepts uploads from whoever has a key to it,
so whatever a sandbox can read it can also tell (attack 102).
"""

from __future__ import annotations

from typing import Final

Line = tuple[str, tuple[int, ...], str, str]

BUNDLES: Final[dict[str, tuple[Line, ...]]] = {
    "pypi": (
        ("pypi.org", (443,), "tls", "the index that pip and uv ask"),
        ("files.pythonhosted.org", (443,), "tls", "where the index says that packages are"),
    ),
    "npm": (
        ("registry.npmjs.org", (443,), "tls", "the registry of npm, its packages included"),
        ("registry.yarnpkg.com", (443,), "tls", "the same registry by the name that yarn 1 asks"),
    ),
    "debian": (
        ("deb.debian.org", (80,), "http", "the archive by apt's usual address; packages are signed"),
        ("deb.debian.org", (443,), "tls", "the same over TLS"),
        ("security.debian.org", (80,), "http", "security updates as older releases name them"),
        ("security.debian.org", (443,), "tls", "the same over TLS"),
    ),
    "github": (
        ("github.com", (443,), "tls", "git over HTTPS, and the pages of releases"),
        ("api.github.com", (443,), "tls", "the API that gh and many installers ask"),
        ("codeload.github.com", (443,), "tls", "archives of a repository at a commit"),
        ("objects.githubusercontent.com", (443,), "tls", "files of releases, and of git LFS"),
        ("release-assets.githubusercontent.com", (443,), "tls", "files of releases since 2025"),
        ("raw.githubusercontent.com", (443,), "tls", "single files of a repository"),
    ),
}
