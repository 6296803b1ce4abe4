"""A configuration file: what it says, and what is refused with one line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from wire.config import FORMAT_VERSION, ClusterConfig, ConfigError, DataServerConfig, Deadlines, dumps, load
from wire.quorum import Quorum


def example(base: Path, **changes: Any) -> ClusterConfig:
    settings: dict[str, Any] = {
        "cluster": "c-1",
        "quorum": Quorum(2, 1, 2),
        "mediator_listen": "127.0.0.1:0",
        "metaserver_listen": f"unix:{base}/meta",
        "metaserver_directory": base / "meta.d",
        "data_servers": (
            DataServerConfig(1, "127.0.0.1:7001", base / "data-1"),
            DataServerConfig(2, "[::1]:7002", Path("/elsewhere/data-2")),
        ),
        "rpc": "xml",
        "deadlines": Deadlines(vote_seconds=1.5),
        "dirty_bytes": 12345678,
    }
    return ClusterConfig(**{**settings, **changes})


def test_several_mediators(tmp_path: Path) -> None:
    config = example(tmp_path, more_mediators=("127.0.0.1:7003", "127.0.0.1:7004"))
    assert config.mediators == ("127.0.0.1:0", "127.0.0.1:7003", "127.0.0.1:7004")
    file = tmp_path / "cluster.toml"
    file.write_text(dumps(config))
    assert load(file) == config
    with pytest.raises(ConfigError, match="two servers listen on"):
        example(tmp_path, more_mediators=("127.0.0.1:7001",))
    begin, end = (text.index(part) for text in [dumps(config)] for part in ("more = ", "[metaserver]"))
    for wrong in ('"127.0.0.1:7003"', "[7003]"):
        file.write_text(f"{dumps(config)[:begin]}more = {wrong}\n{dumps(config)[end:]}")
        with pytest.raises(ConfigError, match="is a list of addresses"):
            load(file)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    config = example(tmp_path)
    file = tmp_path / "cluster.toml"
    for base in (tmp_path, None):
        file.write_text(dumps(config, base))
        assert load(file) == config


def test_directories_are_relative_to_the_file(tmp_path: Path) -> None:
    text = dumps(example(tmp_path), tmp_path)
    assert '"data-1"' in text and str(tmp_path / "data-1") not in text
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "cluster.toml").write_text(text)
    assert load(moved / "cluster.toml").data_servers[0].directory == moved / "data-1"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data_servers": ()}, "1 to N=2"),
        (
            {"data_servers": (DataServerConfig(1, "a:1", Path()), DataServerConfig(1, "a:2", Path()))},
            "each once",
        ),
        ({"mediator_listen": "127.0.0.1:7001"}, "two servers listen on 127.0.0.1:7001"),
        ({"mediator_listen": "nowhere"}, "an address is HOST:PORT"),
        ({"metaserver_listen": "unix:/" + "a" * 200}, "1 to 107 bytes"),
        ({"rpc": "pickle"}, 'choose "msgpack" or "xml"'),
        ({"lease_seconds": "30"}, "lease_seconds = '30': choose a number"),
        ({"lease_seconds": 0}, "above 0"),
        ({"lease_seconds": float("nan")}, "choose a number"),
        ({"scrub_days": float("nan")}, "choose a number"),
        ({"lease_seconds": float("inf")}, "choose a number up to 1e"),
        ({"garbage_grace_seconds": 1e300}, "choose a number up to 1e"),
        ({"quarantine_bytes": 10**30}, "choose a whole number up to"),
        (
            {"data_servers": (DataServerConfig(True, "a:1", Path()), DataServerConfig(2, "a:2", Path()))},
            "1 to N=2",
        ),
        ({"commit_age_seconds": -1}, "choose 0 or more"),
        ({"garbage_grace_seconds": -0.5}, "choose 0 or more"),
        ({"dirty_bytes": 0}, "above 0"),
        ({"dirty_bytes": 1e9}, "choose a whole number"),
        ({"reserve_bytes": "1 MB"}, "choose a whole number"),
        ({"reserve_bytes": True}, "choose a whole number"),
        ({"cluster": 5}, "in quotes"),
        ({"mediator_listen": 7000}, "in quotes"),
        ({"mediator_listen": "127.0.0.1:\u00b2"}, "an address is HOST:PORT"),
        ({"mediator_listen": "a..b:7000"}, "an address is HOST:PORT"),
        ({"mediator_listen": f"{'a' * 64}:7000"}, "an address is HOST:PORT"),
        ({"mediator_listen": "a\0b:7000"}, "an address is HOST:PORT"),
        ({"metaserver_listen": "unix:/a\0b"}, "1 to 107 bytes"),
    ],
)
def test_settings_that_cannot_work(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        example(tmp_path, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "advice"),
    [("1", "older release"), ("3", "newer release"), ("0", "no configuration"), ("true", "no configuration")],
)
def test_another_format_is_refused_with_advice(tmp_path: Path, said: str, advice: str) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(dumps(example(tmp_path), tmp_path).replace("format = 2", f"format = {said}"))
    with pytest.raises(ConfigError, match=advice):
        load(file)


@pytest.mark.parametrize("value", [0, -1.0, "5", float("nan"), float("inf"), True])
def test_a_deadline_is_a_number_above_0(value: Any) -> None:
    for deadline in dataclasses.fields(Deadlines):
        with pytest.raises(ConfigError, match=f"{deadline.name} = .*: choose a number"):
            Deadlines(**{deadline.name: value})


def test_damaged_files_are_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    with pytest.raises(ConfigError, match="no such configuration file"):
        load(file)
    good = dumps(example(tmp_path), tmp_path)
    for wrong in (
        "",
        "no toml",
        "\0",
        good.replace("format = 2", "format = 3"),
        good.replace("N = 2", 'N = "2"'),
        good.replace("Qw = 2", "Qw = 1"),
        good.replace("Qw = 2", "Qw = 3"),
        good.replace("[quorum]", "[quorums]"),
        good.replace("[mediator]", "[[mediator]]"),
        good.replace('cluster = "c-1"', ""),
        good.replace('cluster = "c-1"', 'cluster = "c-1"\nunknown = 1'),
        good.replace("vote_seconds", "votes_seconds"),
        good.replace("number = 1", "number = 3"),
    ):
        assert wrong != good
        file.write_text(wrong)
        with pytest.raises(ConfigError) as caught:
            load(file)
        assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError):
        load(file)


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("[quorum]", "[quorum]\nqr = 1", "unknown setting 'qr' in .quorum.: it has N, Qr, Qw"),
        ("[mediator]", '[mediator]\nmor = ["a:1"]', "unknown setting 'mor' in .mediator."),
        ("[metaserver]", '[metaserver]\nrpc = "xml"', "'rpc' in .metaserver.: it belongs above the first"),
        ("[deadlines]", '[deadlines]\nunavailable = "wait"', "it belongs above the first table"),
        ("number = 1,", "number = 1, weight = 2,", "unknown setting 'weight' in dataserver"),
        ("number = 1,", "number = 1.0,", "they must be 1 to N=2"),
        ('directory = "data-1"', "directory = 1", "a path, in quotes"),
        ("Qw = 2", "Qw = 1.5", "Qw=1.5: choose a whole number"),
        ("Qr = 1", "Qr = true", "Qr=True: choose a whole number"),
        ("N = 2", "N = 2.0", "N=2.0: choose a whole number"),
        ("[deadlines]", "deadlines = 5\n[more]", "unknown setting 'deadlines' in .metaserver."),
    ],
)
def test_what_was_edited_wrongly_is_not_ignored(tmp_path: Path, right: str, wrong: str, said: str) -> None:
    file = tmp_path / "cluster.toml"
    good = dumps(example(tmp_path), tmp_path)
    assert right in good
    file.write_text(good.replace(right, wrong))
    with pytest.raises(ConfigError, match=said) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)


def test_a_socket_is_relative_to_the_file(tmp_path: Path) -> None:
    """Commands find it from whatever directory they are typed in."""
    file = tmp_path / "cluster.toml"
    text = dumps(example(tmp_path), tmp_path).replace("127.0.0.1:7001", "unix:run/data-1")
    file.write_text(text.replace("127.0.0.1:0", "unix:run/mediator"))
    config = load(file)
    assert config.mediator_listen == f"unix:{tmp_path}/run/mediator"
    assert config.data_servers[0].listen == f"unix:{tmp_path}/run/data-1"
    assert config.metaserver_listen == f"unix:{tmp_path}/meta"


def test_a_file_that_is_named_by_a_relative_path_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text that copies of the metadata keep is made of it: there, all is relative to the file."""
    state = tmp_path / "state"
    state.mkdir()
    text = dumps(example(state), state).replace("127.0.0.1:7001", "unix:run/data-1")
    (state / "cluster.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert load(Path("state/cluster.toml")) == load(state / "cluster.toml")
    assert 'directory = "data-1"' in dumps(load(Path("state/cluster.toml")), state)


def test_a_configuration_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        example(tmp_path).rpc = "msgpack"  # type: ignore[misc]


def test_a_file_that_was_begun_by_hand_is_told_how(tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text('cluster = "home"\n')
    with pytest.raises(ConfigError, match=f"begin the file with: format = {FORMAT_VERSION}$"):
        load(file)


def test_a_file_that_cannot_be_read_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path)
    assert str(refused.value) == f"{tmp_path}: cannot be read: Is a directory"
