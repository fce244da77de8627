"""What pulling and pushing do when the Hub, the network or another user is in the way."""

from __future__ import annotations

import threading

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from tiny import drawn, tiny_model

import hf_connectome.hub as hub_module
from hf_connectome import Connectome, ConnectomeModel
from hf_connectome.errors import ConnectomeError, FormatError, HubError
from hf_connectome.hub import commit, create_repository, fetch
from hf_connectome.storage import CONFIG_FILE, WEIGHTS_FILE

REPO = "org/wiring"
ALICE = "hf_alice"
FILES = "^/(org|cdn)/"


@pytest.fixture(scope="module")
def connectome():
    return drawn(tiny_model("gpt2"))


@pytest.fixture(scope="module")
def folder(connectome, tmp_path_factory):
    path = tmp_path_factory.mktemp("wiring")
    connectome.save_pretrained(path)
    return path


@pytest.fixture
def files(folder):
    return {file.name: file for file in folder.iterdir()}


@pytest.fixture
def alice(client):
    client.log_in(ALICE)
    create_repository(REPO)
    return HfApi(token=ALICE)


@pytest.fixture
def pushed(alice, files):
    return commit(files, REPO, message="a wiring", tag="generation-0")


def flipped(content):
    """Turn over the last bit, which is one of a mask or a sign."""
    return content[:-1] + bytes([content[-1] ^ 0x80])


# ---- pulling -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        {"pattern": "^/cdn/", "drop": "answer"},
        {"pattern": "/resolve/", "drop": "answer", "method": "GET"},
        {"pattern": "^/cdn/", "status": 429},
    ],
    ids=["lost", "lost-small-file", "too-many-requests"],
)
def test_pull_recovers_from_one_failure(client, hub, pushed, connectome, fault):
    hub.fail(**fault)
    assert Connectome.from_pretrained(REPO) == connectome
    assert len(client.pauses) == 1


def test_pull_waits_as_long_as_the_hub_says(client, hub, pushed):
    hub.fail("^/cdn/", status=429, headers={"Retry-After": "7"})
    fetch(REPO)
    assert client.pauses == [8.0]  # the client adds one for rounding


@pytest.mark.parametrize("target", ["/api/models/", "/tree/", "/resolve/", "^/cdn/"])
def test_pull_is_refused_with_the_reason_when_the_hub_stays_busy(hub, pushed, target):
    hub.fail(target, status=503, times=None)
    with pytest.raises(HubError, match=r"'org/wiring': the Hub has trouble.*HTTP 503"):
        fetch(REPO)
    hub.heal()
    assert fetch(REPO)


def test_warm_cache_serves_when_the_hub_is_busy(hub, pushed, connectome):
    fetch(REPO)
    hub.fail(".", status=503, times=None)
    assert Connectome.from_pretrained(REPO) == connectome


def test_pull_is_refused_when_requests_stay_too_many(hub, pushed):
    hub.fail("^/cdn/", status=429, times=None)
    with pytest.raises(HubError, match=r"too many requests. Wait and try again \(HTTP 429"):
        fetch(REPO)


@pytest.mark.parametrize(
    "fault",
    [{"mangle": lambda content: content[:100]}, {"drop": "answer"}],
    ids=["shorter", "lost"],
)
def test_truncated_download_is_refused_and_the_next_pull_is_whole(hub, pushed, connectome, fault):
    hub.fail("^/cdn/", times=None, **fault)
    with pytest.raises(HubError, match=r"(?s)connection to the Hub was lost.*Try the same again"):
        fetch(REPO)
    hub.heal()
    assert Connectome.from_pretrained(REPO) == connectome


@pytest.mark.parametrize(
    "load",
    [Connectome.from_pretrained, ConnectomeModel.from_pretrained],
    ids=["connectome", "model"],
)
def test_flipped_bit_is_refused_and_healed_by_force_download(hub, pushed, connectome, load):
    hub.fail("^/cdn/", mangle=flipped)
    damaged = fetch(REPO)  # the client does not notice: the length is right
    for source in (REPO, str(damaged)):
        with pytest.raises(FormatError, match="digest"):
            load(source)
    healed = load(REPO, force_download=True)
    assert getattr(healed, "connectome", healed) == connectome


def test_flipped_bit_in_the_config_is_refused(hub, pushed):
    hub.fail(f"/resolve/.*/{CONFIG_FILE}", mangle=lambda text: text.replace(b'"GPT2', b'"GPT3'))
    with pytest.raises(ConnectomeError, match="GPT3"):
        Connectome.from_pretrained(REPO)


def test_connection_refused_is_named(client, hub, alice, files):
    hub.stop()
    with pytest.raises(HubError, match=r"'org/wiring'.*could not be asked"):
        fetch(REPO)
    with pytest.raises(HubError, match=r"connection to the Hub was lost at 'org/wiring'"):
        commit(files, REPO, message="no")
    with pytest.raises(HubError, match=r"connection to the Hub was lost"):
        create_repository(REPO)
    with pytest.raises(HubError, match=r"connection to the Hub was lost"):
        hub_module.search()


# ---- pushing: overtaken --------------------------------------------------------------------------


def overtaken_by(hub, monkeypatch, push):
    """Let another user push once this one has looked at the repository."""
    first = threading.Event()

    def look(self, *arguments, **options):
        seen = asked(self, *arguments, **options)
        if not first.is_set():
            first.set()
            push()
        return seen

    asked = HfApi.model_info
    monkeypatch.setattr(HfApi, "model_info", look)


def test_overtaken_push_is_refused_and_changes_nothing(hub, alice, files, folder, monkeypatch):
    before = {name: file.read_bytes() for name, file in files.items()}
    theirs = CommitOperationAdd("theirs.txt", b"first")
    overtaken_by(
        hub,
        monkeypatch,
        lambda: alice.create_commit(REPO, [theirs], commit_message="theirs"),
    )
    with pytest.raises(HubError, match=r"another push came first.*then push again.*HTTP 412"):
        commit(files, REPO, message="mine", tag="generation-0")
    assert set(alice.list_repo_files(REPO)) == {".gitattributes", "theirs.txt"}
    assert hub_module.tags(REPO) == {}
    assert {name: file.read_bytes() for name, file in files.items()} == before
    assert set(folder.iterdir()) == set(files.values())
    commit(files, REPO, message="mine", tag="generation-0")
    assert {"theirs.txt", WEIGHTS_FILE} <= set(alice.list_repo_files(REPO))


def test_one_of_two_racing_pushes_lands(alice, monkeypatch):
    together, outcomes = threading.Barrier(2), []
    asked = HfApi.model_info

    def look(self, *arguments, **options):
        seen = asked(self, *arguments, **options)
        together.wait(timeout=30)  # both have seen the same head
        return seen

    monkeypatch.setattr(HfApi, "model_info", look)

    def push(content):
        try:
            outcomes.append(commit({"a.txt": content}, REPO, message="race").commit)
        except HubError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=push, args=(content,)) for content in (b"1", b"2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [outcome for outcome in outcomes if "another push came first" in outcome]
    assert len(refused) == 1
    monkeypatch.undo()
    assert outcomes != refused * 2


# ---- pushing: refused or cut off -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "said"),
    [(403, "may not do that there"), (400, "the Hub refused"), (503, "the Hub has trouble")],
)
def test_refused_commit_leaves_nothing_and_the_next_push_lands(hub, alice, files, status, said):
    head = alice.model_info(REPO).sha
    hub.fail("/commit/main", status=status, times=None)
    with pytest.raises(HubError, match=rf"{said}.*HTTP {status}.*local files are whole"):
        commit(files, REPO, message="a wiring", tag="generation-0")
    assert alice.model_info(REPO).sha == head
    assert hub_module.tags(REPO) == {}
    hub.heal()
    commit(files, REPO, message="a wiring", tag="generation-0")
    assert len(alice.list_repo_commits(REPO)) == 2


@pytest.mark.parametrize(
    ("target", "method"),
    [("/preupload/", "POST"), ("^/lfs/", "PUT"), ("/commit/main", "POST")],
    ids=["announcing", "uploading", "committing"],
)
def test_push_cut_off_half_way_shows_nothing_and_is_completed_by_the_next(
    hub, alice, files, connectome, target, method
):
    head = alice.model_info(REPO).sha
    hub.fail(target, method=method, drop="request", times=None)
    with pytest.raises(HubError, match=r"connection to the Hub was lost at 'org/wiring'"):
        commit(files, REPO, message="a wiring", tag="generation-0")
    assert alice.model_info(REPO).sha == head
    assert alice.list_repo_files(REPO) == [".gitattributes"]
    hub.heal()
    done = commit(files, REPO, message="a wiring", tag="generation-0")
    assert hub_module.tags(REPO) == {"generation-0": done.commit}
    assert Connectome.from_pretrained(REPO, revision="generation-0") == connectome


def test_push_whose_answer_was_lost_is_completed_by_the_next(hub, alice, files):
    hub.fail("/commit/main", drop="answer", times=None)
    with pytest.raises(HubError) as error:
        commit(files, REPO, message="a wiring", tag="generation-0")
    # It did land: only the answer is missing, so the message must not say that it did not.
    assert WEIGHTS_FILE in alice.list_repo_files(REPO)
    assert "Nothing of it was published" not in str(error.value)
    hub.heal()
    done = commit(files, REPO, message="a wiring", tag="generation-0")
    assert len(alice.list_repo_commits(REPO)) == 2
    assert hub_module.tags(REPO) == {"generation-0": done.commit}


def test_push_whose_tag_was_refused_is_completed_by_the_next(hub, alice, files):
    hub.fail("/tag/", status=403)
    with pytest.raises(HubError) as error:
        commit(files, REPO, message="a wiring", tag="generation-0")
    assert "Nothing of it was published" not in str(error.value)
    done = commit(files, REPO, message="a wiring", tag="generation-0")
    assert len(alice.list_repo_commits(REPO)) == 2
    assert hub_module.tags(REPO) == {"generation-0": done.commit}


@pytest.mark.parametrize(
    "fault",
    [
        {"pattern": "/preupload/", "status": 503},
        {"pattern": "^/lfs/", "method": "PUT", "status": 503},
        {"pattern": "^/lfs/", "method": "PUT", "drop": "request"},
        {"pattern": "/preupload/", "status": 429, "headers": {"Retry-After": "7"}},
    ],
    ids=["busy", "busy-store", "lost", "too-many-requests"],
)
def test_push_recovers_from_one_failure(client, hub, alice, files, fault):
    hub.fail(**fault)
    commit(files, REPO, message="a wiring")
    assert len(client.pauses) == 1
    assert WEIGHTS_FILE in alice.list_repo_files(REPO)


def test_upload_that_arrives_damaged_is_refused(hub, alice, files):
    hub.fail("^/lfs/", method="PUT", status=400, times=None)
    with pytest.raises(HubError, match="HTTP 400"):
        commit(files, REPO, message="a wiring")
    assert alice.list_repo_files(REPO) == [".gitattributes"]
