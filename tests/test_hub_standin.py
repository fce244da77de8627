"""The stand-in for the Hub, judged by huggingface_hub's own client alone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hub import Client
from hub.client import steps
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    ModelCardData,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

REPO = "org/wiring"
BYTES = np.random.default_rng(0).bytes(200_000)


@pytest.fixture
def alice(client):
    return HfApi(token="hf_alice")


@pytest.fixture
def bob(client):
    return HfApi(token="hf_bob")


@pytest.fixture
def visitor(client):
    return HfApi(token=False)


def put(api, files, *, repo=REPO, **options):
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(repo, operations, commit_message="put", **options)


def status_of(error):
    return error.value.response.status_code


# ---- both ways of uploading ----------------------------------------------------------------------


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_downloaded_bytes_equal_the_uploaded_ones(client, hub, alice, tmp_path, xet):
    client.use_xet(xet)
    alice.create_repo(REPO)
    done = put(alice, {"a/w.safetensors": BYTES, "config.json": b"{}"})
    asked = steps(hub.log, "GET") + steps(hub.log, "PUT")
    assert any("xet-write-token" in target for target in asked) is xet
    assert any(target.startswith("/lfs/") for target in asked) is not xet
    folder = snapshot_download(REPO, token=False)
    assert folder.endswith(done.oid)
    for path, content in {"a/w.safetensors": BYTES, "config.json": b"{}"}.items():
        assert Path(folder, path).read_bytes() == content


def test_file_that_came_by_xet_is_read_by_a_client_without(client, alice):
    client.use_xet()
    alice.create_repo(REPO)
    put(alice, {"w.safetensors": BYTES})
    client.use_xet(False)
    assert Path(hf_hub_download(REPO, "w.safetensors", token=False)).read_bytes() == BYTES


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_same_push_again_makes_no_commit(client, alice, xet):
    client.use_xet(xet)
    alice.create_repo(REPO)
    first = put(alice, {"w.safetensors": BYTES})
    assert put(alice, {"w.safetensors": BYTES}).oid == first.oid
    assert len(alice.list_repo_commits(REPO)) == 2  # with the one that created it


def test_token_is_not_sent_to_the_host_of_large_files(hub, alice):
    alice.create_repo(REPO)
    put(alice, {"w.safetensors": BYTES})
    hf_hub_download(REPO, "w.safetensors", token="hf_alice")
    users = [user for _, target, _, user in hub.log if target.startswith("/cdn/")]
    assert users == [None]


# ---- who may do what -----------------------------------------------------------------------------


def test_whoami_names_the_user_and_the_organisations(alice, client):
    asked = alice.whoami()
    assert (asked["name"], [o["name"] for o in asked["orgs"]]) == ("alice", ["org"])
    with pytest.raises(HfHubHTTPError) as error:
        HfApi(token="hf_nobody").whoami()
    assert status_of(error) == 401


def test_repository_is_created_once(alice):
    assert alice.create_repo(REPO).repo_id == REPO
    assert alice.create_repo(REPO, exist_ok=True).repo_id == REPO
    with pytest.raises(HfHubHTTPError) as error:
        alice.create_repo(REPO)
    assert status_of(error) == 409


def test_foreign_namespace_is_refused(bob, visitor):
    with pytest.raises(HfHubHTTPError) as error:
        bob.create_repo(REPO)
    assert status_of(error) == 403
    with pytest.raises(HfHubHTTPError) as error:
        visitor.create_repo(REPO)
    assert status_of(error) == 401


def test_commit_without_the_right_to_write_is_refused(alice, bob, visitor):
    alice.create_repo(REPO)
    for api, status in ((bob, 403), (visitor, 401)):
        with pytest.raises(HfHubHTTPError) as error:
            put(api, {"a": b"1"})
        assert status_of(error) == status


def test_private_repository_is_shown_to_its_owners_alone(alice, bob, visitor):
    alice.create_repo(REPO, private=True)
    assert alice.model_info(REPO).private
    for api, status in ((bob, 404), (visitor, 401)):
        with pytest.raises(RepositoryNotFoundError) as error:
            api.model_info(REPO)
        assert status_of(error) == status
        assert not list(api.list_models(search="wiring"))


def test_gated_files_are_given_to_those_who_were_granted_access(hub, alice, bob, visitor):
    alice.create_repo(REPO)
    put(alice, {"a": b"1"})
    alice.update_repo_settings(REPO, gated="manual")
    assert visitor.model_info(REPO).gated == "manual"
    for api, status in ((bob, 403), (visitor, 401)):
        with pytest.raises(GatedRepoError) as error:
            api.hf_hub_download(REPO, "a")
        assert status_of(error) == status
    hub.repositories["model", REPO].granted.add("bob")
    assert bob.hf_hub_download(REPO, "a")


def test_deleted_repository_is_gone(alice, bob):
    alice.create_repo(REPO)
    with pytest.raises(HfHubHTTPError):
        bob.delete_repo(REPO)
    alice.delete_repo(REPO)
    assert not alice.repo_exists(REPO)


def test_dataset_is_no_model(alice):
    alice.create_repo("org/texts", repo_type="dataset")
    alice.upload_file(
        path_or_fileobj=b"{}", path_in_repo="a.json", repo_id="org/texts", repo_type="dataset"
    )
    assert alice.repo_exists("org/texts", repo_type="dataset")
    assert not alice.repo_exists("org/texts")
    assert hf_hub_download("org/texts", "a.json", repo_type="dataset", token=False)


# ---- commits, branches, tags ---------------------------------------------------------------------


def test_commit_onto_an_overtaken_parent_is_refused(alice):
    alice.create_repo(REPO)
    seen = alice.model_info(REPO).sha
    winner = put(alice, {"a": b"1"}, parent_commit=seen)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
        put(alice, {"a": b"2"}, parent_commit=seen)
    assert status_of(error) == 412
    assert alice.model_info(REPO).sha == winner.oid


def test_one_of_racing_commits_with_one_parent_lands(alice):
    alice.create_repo(REPO)
    seen, statuses = alice.model_info(REPO).sha, []
    together = threading.Barrier(4)

    def push(content):
        together.wait()
        try:
            put(alice, {"a": content}, parent_commit=seen)
            statuses.append(200)
        except HfHubHTTPError as error:
            statuses.append(error.response.status_code)

    threads = [threading.Thread(target=push, args=(b"%d" % i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, 412, 412, 412]
    assert len(alice.list_repo_commits(REPO)) == 2


def test_commit_with_one_wrong_operation_changes_nothing(alice):
    alice.create_repo(REPO)
    before = alice.model_info(REPO).sha
    operations = [CommitOperationAdd("a", b"1"), CommitOperationDelete("not-there")]
    with pytest.raises(EntryNotFoundError):
        alice.create_commit(REPO, operations, commit_message="half wrong")
    assert alice.model_info(REPO).sha == before
    assert alice.list_repo_files(REPO) == [".gitattributes"]


def test_tags_and_branches_name_commits(alice):
    alice.create_repo(REPO)
    first = put(alice, {"a": b"1"})
    alice.create_tag(REPO, tag="generation-0", revision=first.oid)
    alice.create_branch(REPO, branch="seed-1")
    second = put(alice, {"a": b"2"}, revision="seed-1")
    refs = alice.list_repo_refs(REPO)
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"generation-0": first.oid}
    heads = {ref.name: ref.target_commit for ref in refs.branches}
    assert heads == {"main": first.oid, "seed-1": second.oid}
    for revision, content in (("generation-0", b"1"), ("seed-1", b"2"), (first.oid, b"1")):
        assert Path(hf_hub_download(REPO, "a", revision=revision)).read_bytes() == content
    with pytest.raises(HfHubHTTPError) as error:
        alice.create_tag(REPO, tag="generation-0")
    assert status_of(error) == 409
    alice.delete_tag(REPO, tag="generation-0")
    alice.delete_branch(REPO, branch="seed-1")
    with pytest.raises(RevisionNotFoundError):
        alice.delete_tag(REPO, tag="generation-0")


def test_missing_repository_revision_and_file_are_told_apart(alice, visitor):
    alice.create_repo(REPO)
    with pytest.raises(RepositoryNotFoundError):
        visitor.hf_hub_download("org/nothing", "a")
    with pytest.raises(RevisionNotFoundError):
        visitor.hf_hub_download(REPO, "a", revision="generation-9")
    with pytest.raises(EntryNotFoundError):
        visitor.hf_hub_download(REPO, "a")


# ---- looking -------------------------------------------------------------------------------------


def test_listings_show_folders_and_sizes(alice):
    alice.create_repo(REPO)
    put(alice, {"a/b/w.safetensors": BYTES, "a/c": b"1", "d": b"22"})
    top = {entry.path for entry in alice.list_repo_tree(REPO)}
    assert top == {"a", "d", ".gitattributes"}
    deep = {entry.path for entry in alice.list_repo_tree(REPO, recursive=True)}
    assert deep == {"a", "a/b", "a/b/w.safetensors", "a/c", "d", ".gitattributes"}
    (large,) = alice.get_paths_info(REPO, ["a/b/w.safetensors", "nothing"])
    assert (large.size, large.lfs.size) == (len(BYTES), len(BYTES))
    info = alice.model_info(REPO, files_metadata=True)
    assert {s.rfilename: s.size for s in info.siblings}["d"] == 2


def test_search_goes_by_tag_author_and_words_newest_first(alice, visitor):
    for name, tag in (("org/one", "connectome"), ("org/two", "other"), ("alice/three", None)):
        alice.create_repo(name)
        data = ModelCardData(tags=["connectome", tag] if tag else ["connectome"])
        put(alice, {"README.md": f"---\n{data.to_yaml()}\n---\n# {name}\n".encode()}, repo=name)

    def found(**wanted):
        return [model.id for model in visitor.list_models(sort="last_modified", **wanted)]

    assert found(filter="connectome") == ["alice/three", "org/two", "org/one"]
    assert found(filter=["connectome", "other"]) == ["org/two"]
    assert found(author="org") == ["org/two", "org/one"]
    assert found(search="THREE") == ["alice/three"]
    assert found(filter="connectome", limit=1) == ["alice/three"]


def test_card_is_checked_and_read_back(alice, visitor):
    alice.create_repo(REPO)
    data = ModelCardData(license="mit", library_name="hf_connectome", tags=["x"], base_model="b/b")
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n# A wiring\n")
    card.validate()
    card.push_to_hub(REPO, token="hf_alice")
    info = visitor.model_info(REPO)
    assert {"x", "hf_connectome", "base_model:b/b", "license:mit"} <= set(info.tags)
    assert info.card_data.base_model == "b/b"
    assert ModelCard.load(REPO, token=False).content == card.content
    with pytest.raises(ValueError, match="Invalid metadata"):
        put(alice, {"README.md": b"---\ntags: [a\n---\n"})


# ---- what goes wrong on purpose ------------------------------------------------------------------


def test_download_goes_on_where_the_connection_was_lost(client, hub, alice, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    alice.create_repo(REPO)
    put(alice, {"w.safetensors": BYTES})
    hub.fail("^/cdn/", drop="answer")
    assert Path(hf_hub_download(REPO, "w.safetensors")).read_bytes() == BYTES
    statuses = [s for method, target, s, _ in hub.log if target.startswith("/cdn/")]
    assert statuses == [200, 206]
    assert client.pauses == [1]


def test_upload_that_lost_its_connection_is_sent_again(client, hub, alice):
    alice.create_repo(REPO)
    hub.fail("^/lfs/", method="PUT", drop="request")
    put(alice, {"w.safetensors": BYTES})
    assert client.pauses == [1]
    assert hub.large.popitem()[1] == BYTES


def test_fault_ends_when_it_is_healed(hub, alice):
    hub.fail("whoami", times=None, status=400)
    for _ in range(2):
        with pytest.raises(HfHubHTTPError):
            alice.whoami()
    hub.heal()
    assert alice.whoami()["name"] == "alice"


def test_stopped_server_refuses_connections(client, hub, alice):
    alice.whoami()
    hub.stop()
    with pytest.raises(Exception, match=r"refused|failed") as lost:
        alice.whoami()
    # Of httpx, or of httpx2 since huggingface_hub 2.
    assert "TransportError" in {kind.__name__ for kind in type(lost.value).__mro__}


# ---- by hand -------------------------------------------------------------------------------------


def test_stand_in_is_started_from_the_command_line(client):
    here = Path(__file__).parent
    command = [sys.executable, "-m", "hub", "--user", "carol", "--organisation", "team=carol"]
    with subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, text=True) as program:
        try:
            url = program.stdout.readline().strip()
            api = HfApi(url, token="hf_carol")
            assert api.create_repo("team/wiring").repo_id == "team/wiring"
            assert api.repo_exists("team/wiring")
        finally:
            program.terminate()


# ---- every other test ----------------------------------------------------------------------------


def test_settings_of_the_process_are_as_they_were_when_a_test_ends(hub, tmp_path):
    from huggingface_hub import constants, hf_api

    names = ("ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_HUB_DISABLE_XET")

    def settings():
        return [getattr(constants, name) for name in names], hf_api.api.endpoint, dict(os.environ)

    before = settings()
    assert constants.HF_HUB_OFFLINE
    with pytest.MonkeyPatch.context() as patch:
        Client(hub, tmp_path, patch).log_in("hf_alice")
        assert constants.ENDPOINT == hf_api.api.endpoint == hub.url
        assert not constants.HF_HUB_OFFLINE
    assert settings() == before
