from pathlib import Path

import pytest

from sdnet_core.config import load_config
from sdnet_core.errors import ConfigurationError


def write(home: Path, text: str, instance: str = "default") -> dict[str, str]:
    file = home / instance / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return {"SDNET_HOME": str(home)}


def test_defaults(tmp_path: Path) -> None:
    config = load_config(environ={"SDNET_HOME": str(tmp_path)})
    assert config.instance == "default"
    assert config.paths.data == tmp_path / "default" / "data"
    assert config.connections.max_connections == 50
    assert config.device_name
    assert config.node.transports == ("tcp",)


def test_arguments_beat_variables_beat_the_file(tmp_path: Path) -> None:
    env = write(tmp_path, '[node]\nname = "file"\n[connections]\nmax_connections = 7\nkeepalive_misses = 9\n')
    env |= {"SDNET_NODE_NAME": "variable", "SDNET_CONNECTIONS_MAX_CONNECTIONS": "8"}
    config = load_config(environ=env, overrides={"node": {"name": "argument"}})
    assert config.node.name == "argument"
    assert config.connections.max_connections == 8
    assert config.connections.keepalive_misses == 9


def test_lists_and_switches_in_variables(tmp_path: Path) -> None:
    config = load_config(
        environ={
            "SDNET_HOME": str(tmp_path),
            "SDNET_NODE_LISTEN": "/ip4/127.0.0.1/tcp/0, /ip6/::1/tcp/0",
            "SDNET_NODE_TRANSPORTS": "ws,tcp",
            "SDNET_DISCOVERY_MDNS": "false",
            "SDNET_DISABLE_PLUGINS": "a,b",
            "SDNET_PLUGINS": "c",
            "SDNET_STRICT": "1",
        }
    )
    assert config.node.listen == ("/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/0")
    assert config.node.transports == ("ws", "tcp")
    assert config.discovery.mdns is False
    assert config.plugins.disable == ("a", "b")
    assert config.plugins.allow == ("c",)
    assert config.plugins.strict


def test_plugin_tables_are_kept_for_the_plugins(tmp_path: Path) -> None:
    env = write(tmp_path, '[plugins]\ndisable = ["x"]\n[plugins.echo]\nshout = true\n')
    config = load_config(environ=env)
    assert config.plugins.disable == ("x",)
    assert config.plugins.tables == {"echo": {"shout": True}}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[node\n", "not valid TOML"),
        ("[nod]\nname = 1\n", r"unknown section \[nod\]"),
        ("[node]\nnmae = 'x'\n", "nmae"),
        ("[connections]\nmax_connections = 0\n", "max_connections"),
        ("[plugins]\nstrict = 'perhaps'\n", "strict"),
        ("plugins = 3\n", "must be a table"),
        ("[node]\ndownloads = 'here'\n", "not an absolute path"),
        ("[node]\ntransports = ['pigeon']\n", "transports"),
        ("[node]\ntransports = []\n", "transports"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        load_config(environ=write(tmp_path, text))
    assert "config.toml" in str(caught.value) or "[node]" in str(caught.value)


def test_a_mistake_in_a_variable_names_the_variable(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="SDNET_CONNECTIONS_MAX_CONNECTIONS"):
        load_config(environ={"SDNET_HOME": str(tmp_path), "SDNET_CONNECTIONS_MAX_CONNECTIONS": "many"})


@pytest.mark.parametrize("name", ["../x", "a/b", "-x", "x" * 33, "a b"])
def test_instance_names_cannot_leave_their_folder(name: str) -> None:
    with pytest.raises(ConfigurationError, match="instance name"):
        load_config(name, environ={})


def test_the_socket_path_stays_short_however_long_the_home(tmp_path: Path) -> None:
    home = tmp_path / ("x" * 200) / ("y" * 200)
    config = load_config(environ={"SDNET_HOME": str(home)})
    other = load_config("other", environ={"SDNET_HOME": str(home)})
    assert len(bytes(config.paths.socket)) < 104
    assert config.paths.socket != other.paths.socket
