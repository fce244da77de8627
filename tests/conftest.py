"""What every test runs under: offline, one thread, hypothesis profiles; and a Hub to ask for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

# Read when the libraries are imported, so they stand before the imports.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import hypothesis
import pytest
import torch
from hub import Client, Hub

if TYPE_CHECKING:
    from pathlib import Path

torch.set_num_threads(1)

hypothesis.settings.register_profile("ci", max_examples=50, derandomize=True, deadline=None)
hypothesis.settings.register_profile("nightly", max_examples=500, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_configure(config: pytest.Config) -> None:
    """Let pass what huggingface_hub 2.4 does not mean for us: how it hands httpx2 the bytes."""
    config.addinivalue_line("filterwarnings", "ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Start a Hub of the test's own: alice may write to org, bob may not."""
    tokens, xet_store = {"hf_alice": "alice", "hf_bob": "bob"}, tmp_path / "xet_store"
    with Hub(tokens, {"org": ["alice"]}, xet_store=xet_store) as started:
        yield started


@pytest.fixture
def client(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Point huggingface_hub in this process to ``hub``: a visitor with an empty cache, by LFS."""
    import huggingface_hub

    huggingface_hub.close_session()
    yield Client(hub, tmp_path / "home", monkeypatch)
    huggingface_hub.close_session()
