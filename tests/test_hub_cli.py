"""The ``hf`` command of huggingface_hub does with a connectome's folder what it does with any."""

from __future__ import annotations

import pytest
from hub.client import hf
from tiny import drawn, tiny_model

from hf_connectome import Connectome
from hf_connectome.storage import CONFIG_FILE, WEIGHTS_FILE

REPO = "org/wiring"


@pytest.fixture(scope="module")
def connectome():
    return drawn(tiny_model("gpt2"))


@pytest.fixture(scope="module")
def folder(connectome, tmp_path_factory):
    path = tmp_path_factory.mktemp("wiring")
    connectome.save_pretrained(path)
    return path


def test_whoami_names_the_user_of_the_token(client):
    client.log_in("hf_alice")
    assert "alice" in client.run(*hf("auth", "whoami")).stdout
    client.log_in("hf_expired")
    assert client.run(*hf("auth", "whoami"), check=False).returncode != 0


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_uploaded_folder_is_downloaded_with_the_same_digest(
    client, hub, folder, connectome, tmp_path, xet
):
    client.use_xet(xet)
    client.log_in("hf_alice")
    client.run(*hf("upload", REPO, folder))
    assert Connectome.from_pretrained(REPO) == connectome
    client.log_in(None)
    client.run(*hf("download", REPO, "--local-dir", tmp_path / "pulled"))
    assert Connectome.from_pretrained(tmp_path / "pulled") == connectome
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert (tmp_path / "pulled" / name).read_bytes() == (folder / name).read_bytes()
    assert bool(hub.large) is not xet


def test_download_fills_the_cache_that_a_pull_takes_offline(client, hub, folder, connectome):
    client.log_in("hf_alice")
    client.run(*hf("upload", REPO, folder))
    client.run(*hf("download", REPO))
    hub.stop()
    client.go_offline()
    assert Connectome.from_pretrained(REPO) == connectome


def test_upload_to_a_foreign_namespace_is_refused(client, hub, folder):
    client.log_in("hf_bob")
    refused = client.run(*hf("upload", REPO, folder), check=False)
    assert refused.returncode != 0
    assert "403" in refused.stdout + refused.stderr
    assert hub.repositories == {}


@pytest.mark.slow
def test_damaged_file_in_the_cache_is_found_by_its_checksum(client, folder):
    client.log_in("hf_alice")
    client.run(*hf("upload", REPO, folder))
    client.run(*hf("download", REPO))
    client.run(*hf("cache", "verify", REPO))
    blobs = client.home / "hub" / "models--org--wiring" / "blobs"
    largest = max(blobs.iterdir(), key=lambda blob: blob.stat().st_size)
    content = largest.read_bytes()
    largest.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert client.run(*hf("cache", "verify", REPO), check=False).returncode != 0
