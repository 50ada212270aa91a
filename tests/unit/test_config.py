"""Settings: a file, then the environment, then flags; nothing unknown passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringfence.config import read_client, read_server
from ringfence.domain.errors import BadRequest


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A settings file with one of each."""
    path = tmp_path / "server.toml"
    path.write_text('port = 1000\nhost = "::1"\n[tenants.ada]\nmax_runs = 3\nlimits = { memory_bytes = 268435456 }\n')
    return path


def test_the_later_layer_wins(file: Path) -> None:
    """File, then environment, then flags."""
    assert read_server(str(file), environ={}).port == 1000
    assert read_server(str(file), environ={"RINGFENCE_PORT": "2000"}).port == 2000
    assert read_server(str(file), environ={"RINGFENCE_PORT": "2000"}, port=3000, host=None).port == 3000


def test_a_tenant_has_its_own_ceilings_or_the_default(file: Path) -> None:
    """Only what was set is bounded."""
    settings = read_server(str(file), environ={})
    most = settings.of("ada").most()
    assert (settings.of("ada").max_runs, settings.of("bob").max_runs) == (3, 1000)
    assert most is not None
    assert most.memory_bytes == 268435456
    assert most.cpus == 64
    assert settings.of("bob").most() is None


@pytest.mark.parametrize(
    "text",
    [
        "prot = 1",
        'port = "1"',
        "port = 70000",
        "port = -1",
        "header_seconds = nan",
        "[tenants.ada]\nmax_run = 1",
        "[tenants.ada]\nlimits = { memory = 1 }",
        "[tenant]\nlimits = { cpus = -1.0 }",
        "port = ",
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str) -> None:
    """A misspelt setting that is ignored is a wall that is not there."""
    path = tmp_path / "server.toml"
    path.write_text(text)
    with pytest.raises(BadRequest, match=r"settings|limit"):
        read_server(str(path), environ={})


def test_an_unknown_variable_is_refused_and_the_known_ones_named() -> None:
    """RINGFENCE_HOTS is not silently nothing."""
    with pytest.raises(BadRequest, match="RINGFENCE_HOTS") as caught:
        read_server(None, environ={"RINGFENCE_HOTS": "x"})
    assert "RINGFENCE_HOST" in caught.value.remediation


def test_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    """Only the default file may be absent."""
    with pytest.raises(BadRequest, match="does not exist"):
        read_server(str(tmp_path / "none.toml"), environ={})


def test_the_client_reads_its_own(tmp_path: Path) -> None:
    """URL and key from the environment; a server's settings are no client's."""
    environ = {"RINGFENCE_URL": "http://h:1", "RINGFENCE_KEY": "rf_x", "RINGFENCE_STATE": "/s"}
    settings = read_client(None, environ={**environ, "XDG_CONFIG_HOME": str(tmp_path)})
    assert (settings.url, settings.key) == ("http://h:1", "rf_x")


def test_lists_come_with_commas() -> None:
    """Host names in one variable."""
    assert read_server(None, environ={"RINGFENCE_ALLOWED_HOSTS": "a.example, b.example"}).allowed_hosts == [
        "a.example",
        "b.example",
    ]
