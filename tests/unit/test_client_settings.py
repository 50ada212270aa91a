"""Where a client looks for its server, and to whom it shows its key."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringfence.client.settings import DEFAULT_URL, configured, target
from ringfence.domain.errors import BadRequest

KEY = "rf_" + "k" * 43


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's own directory with nothing in it."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("RINGFENCE_URL", "RINGFENCE_KEY", "RINGFENCE_CLIENT_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "ringfence").mkdir()
    return tmp_path / "ringfence" / "client.toml"


def test_without_any_setting_it_is_loopback() -> None:
    """A newcomer's client speaks to a server on the same machine."""
    assert target().url == DEFAULT_URL
    assert not configured()


def test_arguments_win_over_environment_over_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest word counts."""
    home.write_text('url = "http://file:1"')
    assert target().url == "http://file:1"
    monkeypatch.setenv("RINGFENCE_URL", "http://env:2/")
    assert target().url == "http://env:2"
    assert target("http://argument:3").url == "http://argument:3"
    assert configured()


def test_a_kept_key_is_shown_only_to_its_own_server(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pointing the client at another URL does not hand that server the key kept for this one."""
    home.write_text(f'url = "http://mine:1"\nkey = "{KEY}"')
    assert target().key == KEY
    assert target("http://stranger:2").key == ""
    assert target("http://stranger:2", KEY).key == KEY
    monkeypatch.setenv("RINGFENCE_URL", "http://stranger:2")
    assert target().key == ""


@pytest.mark.parametrize(
    "url", ["ftp://h", "h:80", "http://", "http://h:0", "http://h:99999", "http://[", "http://h?x=1"]
)
def test_a_url_that_is_not_a_servers_is_refused(url: str) -> None:
    """A mistake is named before anything is sent."""
    with pytest.raises(BadRequest):
        target(url)


@pytest.mark.parametrize("key", ["rf_\r\nHost: x", "rf_\N{SNOWMAN}", "rf_\0"])
def test_a_key_that_would_break_a_header_is_refused(key: str) -> None:
    """A key with line ends in it never reaches the wire."""
    with pytest.raises(BadRequest):
        target("http://h", key)


def test_an_unknown_name_in_the_file_is_refused(home: Path) -> None:
    """A misspelt setting is not ignored in silence."""
    home.write_text('urll = "http://h"')
    with pytest.raises(BadRequest, match="urll"):
        target()


@pytest.mark.parametrize(
    ("url", "loopback"),
    [("http://127.0.0.1:1", True), ("http://[::1]:1", True), ("http://localhost", True), ("http://10.0.0.1", False)],
)
def test_loopback_is_known_by_its_address(url: str, loopback: bool) -> None:
    """Only for a server on this machine are the environment's proxies left aside."""
    assert target(url).loopback is loopback


def test_a_key_does_not_appear_when_a_target_is_printed() -> None:
    """A key in a log is a key lost."""
    assert KEY not in repr(target("http://h", KEY))
