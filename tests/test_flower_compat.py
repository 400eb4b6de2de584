"""The contract with Flower 1.41: every internal we lean on is there and behaves as read."""

import re
from importlib.metadata import version

import pytest

from federated import flower_compat as flower
from federated.fab import fab_bytes, fab_hash


def test_the_pinned_flower_is_installed():
    assert re.match(r"1\.41\.", version("flwr"))


def test_every_internal_symbol_is_there():
    for name in flower.__all__:
        assert getattr(flower, name) is not None


def test_flowers_clocks_are_the_ones_we_planned_with():
    from flwr.common import constant

    assert constant.HEARTBEAT_DEFAULT_INTERVAL == 30
    assert constant.HEARTBEAT_MIN_INTERVAL == 10
    assert constant.HEARTBEAT_PATIENCE == 2
    from federated import supernode

    assert supernode.HEARTBEAT_S >= constant.HEARTBEAT_MIN_INTERVAL


def test_flowers_loops_sleep_where_we_shorten_them():
    import inspect

    from flwr.supernode import start_client_internal as loop

    source = inspect.getsource(loop)
    assert source.count("time.sleep(3)") == 1
    assert source.count("time.sleep(0.5)") == 2
    assert "pull_objects(" in source
    # Nothing else of `time` is used, so a stand-in with these two is complete.
    assert set(re.findall(r"\btime\.(\w+)\(", source)) == {"sleep"}


def test_flower_calls_nobody_at_home():
    import os

    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"  # noqa: TID251  (Flower reads it)
    assert os.environ["FLWR_DISABLE_UPDATE_CHECK"] == "1"  # noqa: TID251  (Flower reads it)
    assert os.environ["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"  # noqa: TID251  (Flower reads it)
    from flwr.supercore import telemetry

    assert telemetry.FLWR_TELEMETRY_ENABLED == "0"


def test_the_layers_we_leave_out_exist_and_the_ones_that_guard_stay():
    from flwr.superlink import main

    names = [flower.layer_name(layer) for layer in main._get_middleware()]
    assert set(names) >= flower.UNUSED_LAYERS
    kept = [name for name in names if name not in flower.UNUSED_LAYERS]
    assert kept == [
        "BaseHTTPMiddleware",
        "ControlAuthenticationMiddleware",
        "ProtobufTranslationMiddleware",
        "NodeAuthMiddleware",
    ]


def test_flower_reads_our_bundle_and_finds_no_code_in_it():
    import io
    import zipfile

    from flwr.common.config import get_fab_config, get_metadata_from_config

    config = get_fab_config(fab_bytes())
    assert get_metadata_from_config(config) == ("coop/health-data-coop", "0.1.0")
    names = zipfile.ZipFile(io.BytesIO(fab_bytes())).namelist()
    assert names == ["pyproject.toml", ".info/CONTENT"]


def test_the_bundles_digest_is_the_same_on_every_machine():
    import hashlib

    assert fab_hash() == hashlib.sha256(fab_bytes()).hexdigest()
    fab_bytes.cache_clear()
    assert hashlib.sha256(fab_bytes()).hexdigest() == fab_hash()


def test_a_node_key_in_ssh_form_becomes_what_flower_registers(tmp_path):
    from federated import supernode

    text = supernode.make_key(tmp_path / "key")
    assert text.startswith("ecdsa-sha2-nistp384 ")
    assert flower.ssh_key_to_pem(text).startswith(b"-----BEGIN PUBLIC KEY-----")
    assert supernode.make_key(tmp_path / "key") == text
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ValueError, match="ECDSA"):
        flower.ssh_key_to_pem(
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIHm2xbBjV2X1bFVm8CFJYxuvqQXjVQ0u4rlHTjpsfjV"
        )


def test_a_node_asks_often_while_rounds_come_and_seldom_in_quiet_hours():
    from federated.supernode import Pace

    assert [Pace.idle_s(quiet) for quiet in (0, 19, 21, 899, 901)] == [0.25, 0.25, 1, 1, 3]
