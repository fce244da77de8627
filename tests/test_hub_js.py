"""An independent reader: the JavaScript client of the Hub reads what this library published."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess

import pytest
from tiny import drawn, tiny_model

from hf_connectome.publishing import publish
from hf_connectome.storage import CONFIG_FILE, WEIGHTS_FILE

pytestmark = pytest.mark.slow

PACKAGE = "@huggingface/hub@2.17.5"
REPO = "org/wiring"
READER = """
import { createHash } from "node:crypto";
import { downloadFile, listFiles, listModels, modelInfo } from "@huggingface/hub";
const [hubUrl, repo, revision] = process.argv.slice(2);
const files = {};
for await (const entry of listFiles({ repo, revision, hubUrl, recursive: true })) {
  if (entry.type !== "file") continue;
  const blob = await downloadFile({ repo, revision, path: entry.path, hubUrl, xet: false });
  const bytes = Buffer.from(await blob.arrayBuffer());
  files[entry.path] = createHash("sha256").update(bytes).digest("hex");
}
const info = await modelInfo({ name: repo, hubUrl, additionalFields: ["tags", "library_name"] });
const found = [];
for await (const model of listModels({ search: { tags: ["connectome"] }, hubUrl })) {
  found.push(model.name);
}
console.log(JSON.stringify({ files, tags: info.tags, library: info.library_name, found }));
"""


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """Install the client and leave a program that reads one repository."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("npm and node are not installed")
    folder = tmp_path_factory.mktemp("reader")
    install = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), PACKAGE]
    done = subprocess.run(install, capture_output=True, text=True, timeout=180)
    if done.returncode != 0:
        pytest.skip(f"npm could not install {PACKAGE}: {done.stderr[-300:]}")
    (folder / "read.mjs").write_text(READER, encoding="utf-8")
    return folder / "read.mjs"


def test_another_client_lists_reads_and_finds_a_published_connectome(hub, client, reader, tmp_path):
    client.log_in("hf_alice")
    drawn(tiny_model("gpt2")).save_pretrained(tmp_path / "wiring")
    publish(tmp_path / "wiring", REPO, license="mit")
    done = subprocess.run(
        ["node", str(reader), hub.url, REPO, "main"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)
    there = hub.repositories["model", REPO].at("main").files
    assert read["files"] == {
        path: hashlib.sha256(file.read()).hexdigest() for path, file in there.items()
    }
    assert {CONFIG_FILE, WEIGHTS_FILE, "README.md", "densities.png"} <= set(read["files"])
    assert {"connectome", "license:mit"} <= set(read["tags"])
    assert read["library"] == "hf_connectome"
    assert read["found"] == [REPO]
