"""References and access: what is read, what is refused, and what of a secret goes where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ringfence.domain.errors import BadRequest
from ringfence.templates.image.access import (
    Access,
    auth_for,
    basic_auth,
    checked_allow,
    checked_mirror,
    read_auth,
    read_ca,
)
from ringfence.templates.image.reference import Reference, is_public, parse

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "registry", "path", "tag", "digest"),
    [
        ("alpine", "docker.io", "library/alpine", "latest", ""),
        ("alpine:3.20", "docker.io", "library/alpine", "3.20", ""),
        ("docker.io/alpine", "docker.io", "library/alpine", "latest", ""),
        ("me/mine:v1", "docker.io", "me/mine", "v1", ""),
        ("quay.io/a/b_c/d-e.f:X", "quay.io", "a/b_c/d-e.f", "X", ""),
        ("Registry.Example:443/a", "registry.example:443", "a", "latest", ""),
        (f"ghcr.io/a/b:tag@{DIGEST}", "ghcr.io", "a/b", "tag", DIGEST),
        (f"8.8.8.8:5000/a@{DIGEST}", "8.8.8.8:5000", "a", "latest", DIGEST),
    ],
)
def test_a_reference_is_read_as_every_client_reads_it(
    text: str, registry: str, path: str, tag: str, digest: str
) -> None:
    """Registry, repository, tag and digest; Docker's own registry and `latest` where nothing is said."""
    assert parse(text) == Reference(text, registry, path, tag, digest)


def test_a_digest_decides_over_a_tag_and_a_mirror_over_the_registry() -> None:
    """What skopeo is given has never more than one of them."""
    both = parse(f"ghcr.io/a/b:tag@{DIGEST}")
    assert both.at() == f"docker://ghcr.io/a/b@{DIGEST}"
    assert both.at("sha256:other", "mirror.example/cache") == "docker://mirror.example/cache/a/b@sha256:other"
    assert parse("alpine").at() == "docker://docker.io/library/alpine:latest"


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "a b", "-x", "--help", "--authfile=/etc/passwd", "-/x", "a\n", "a\0b", "\u00e4", "A/B", "UPPER",
        "a//b", "/a", "a/",
        "a:", "a:b:c", "a@sha256:00", f"a@{DIGEST}0", f"a@{DIGEST}@{DIGEST}", "a@md5:" + "0" * 32, "a:-tag",
        "a:" + "t" * 129,
        "https://quay.io/a", "docker://a", "dir:/etc", "oci:/x:y", "../a", "a/../b", "a/./b", "x.y:99999/a",
        "x.y:0/a", ".x/a",
        "x..y/a", "x.y-/a", "[::1]:5000/a", "[::1]/a", "a" * 600, "x.y/a;id", "x.y/$(id)", "x.y/a%2e%2e", "a,b",
        "a?b", "a#b",
    ],
)  # fmt: skip
def test_what_is_no_reference_is_refused(text: str) -> None:
    """By its grammar, before anybody is asked."""
    with pytest.raises(BadRequest) as caught:
        parse(text)
    assert caught.value.code == "bad_image_reference"


@pytest.mark.parametrize(
    "text", ["me:sesame@quay.io/a", "me:sesame@quay.io/a:tag", "sesame@quay.io/a", "https://me:sesame@x.y/a"]
)
def test_credentials_in_a_reference_are_refused_and_not_repeated(text: str) -> None:
    """An error is read by more people than a password may be."""
    with pytest.raises(BadRequest) as caught:
        parse(text)
    assert caught.value.code == "bad_image_reference"
    assert "sesame" not in caught.value.cause + caught.value.remediation


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.0.0.1:5000", "localhost", "localhost:80", "a.localhost", "10.0.0.1", "172.16.0.1",
        "192.168.1.1:443",
        "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "127.1:5000", "0x7f.0.0.1",
        "2130706433:80", "0177.0.0.1", "192.0.0.1", "198.18.0.1",
    ],
)  # fmt: skip
def test_private_registries_are_refused_by_every_spelling_unless_they_are_allowed(host: str) -> None:
    """An operator's word, by host or by host and port, lets one through."""
    with pytest.raises(BadRequest) as caught:
        parse(f"{host}/a/b")
    assert caught.value.code == "image_address_refused"
    assert parse(f"{host}/a/b", frozenset({host})).registry == host
    assert parse(f"{host}/a/b", frozenset({host.partition(":")[0]})).registry == host
    with pytest.raises(BadRequest):
        parse(f"{host}/a/b", frozenset({"127.0.0.2", "10.0.0.1:1"}))


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("127.0.0.1", False), ("10.9.8.7", False), ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False), ("fc00::1", False), ("ff02::1", False), ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False), ("2001:0:1::", False), ("169.254.169.254", False),
        ("240.0.0.1", False), ("nonsense", False), ("", False),
    ],
)  # fmt: skip
def test_public_addresses_are_told_from_all_others(address: str, public: bool) -> None:
    """Also where one kind of address holds another."""
    assert is_public(address) is public


def test_only_one_registrys_secret_reaches_a_job() -> None:
    """The longest match counts, as in podman's own files; of an entry, only what is a secret is kept."""
    auth = {
        "quay.io": {"auth": "cXVheTpx", "email": "x"},
        "quay.io/team": {"auth": "dGVhbTp0"},
        "other.example": {"auth": "b3RoZXI6bw=="},
        "https://index.docker.io/v1/": {"auth": "aHViOmg=", "identitytoken": ""},
    }
    assert auth_for(auth, "quay.io", "team/tool") == {"quay.io": {"auth": "dGVhbTp0"}}
    assert auth_for(auth, "quay.io", "else") == {"quay.io": {"auth": "cXVheTpx"}}
    assert auth_for(auth, "docker.io", "library/alpine") == {"docker.io": {"auth": "aHViOmg="}}
    assert auth_for(auth, "quay.io.evil.example", "team") == {}


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    """Neither in a repr nor in a refusal of the file they stand in."""
    access = Access(auth=basic_auth("x.y", "me", "sesame"), ca="PEM sesame")
    assert "sesame" not in repr(access)
    assert "bWU6" not in repr(access)
    file = tmp_path / "auth.json"
    for text in ("sesame", "{}", '{"auths": ["sesame"]}', '{"auths": {"x.y": "sesame"}}', "[" * 100_000):
        file.write_text(text)
        with pytest.raises(BadRequest) as caught:
            read_auth(str(file))
        assert "sesame" not in caught.value.cause
    file.write_text(json.dumps({"auths": {"x.y": {"auth": "not base64"}}, "credHelpers": {}}))
    with pytest.raises(BadRequest):
        auth_for(read_auth(str(file)), "x.y", "a")


def test_a_certificate_file_with_a_key_in_it_is_refused(tmp_path: Path) -> None:
    """A job that speaks to strangers is not given a private key by mistake."""
    file = tmp_path / "ca.pem"
    for text in ("", "nothing", "-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\n"):
        file.write_text(text)
        with pytest.raises(BadRequest):
            read_ca(str(file))
    with pytest.raises(BadRequest):
        read_ca(str(tmp_path / "absent"))


def test_what_an_operator_allows_is_checked_too() -> None:
    """A typing error is no wall that is silently not there."""
    assert checked_allow(("HOST.example:5000", "http://127.0.0.1:5000")) == (
        "host.example:5000",
        "http://127.0.0.1:5000",
    )
    access = Access(allow=("a:1", "http://b:2"))
    assert (access.allowed, access.plain) == (frozenset({"a:1", "b:2"}), frozenset({"b:2"}))
    for wrong in ("", "https://x", "x/y", "me:pw@x", "*"):
        with pytest.raises(BadRequest):
            checked_allow((wrong,))
    assert checked_mirror("https://Mirror.example/cache/") == "mirror.example/cache"
    assert checked_mirror("") == ""
    for wrong in ("http://x", "x/Y", "me:pw@x", "-x", "x/../y"):
        with pytest.raises(BadRequest):
            checked_mirror(wrong)
    for name, password in (("", "x"), ("a:b", "x"), ("a", ""), ("a", "x\ny")):
        with pytest.raises(BadRequest):
            basic_auth("x.y", name, password)
