"""Pulling, pushing, publishing: by huggingface_hub's own client against a Hub on this machine."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard, close_session
from safetensors import safe_open
from tiny import drawn, same, state_of, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent / "workers"))
import evolve_worker
from hub import Client, Hub
from hub.client import steps

import hf_connectome.hub as hub_module
from hf_connectome import Connectome, ConnectomeModel
from hf_connectome.errors import FormatError, HubError
from hf_connectome.hub import commit, create_repository, fetch, search
from hf_connectome.publishing import publish
from hf_connectome.storage import CONFIG_FILE, WEIGHTS_FILE, read

REPO = "org/wiring"
ALICE = "hf_alice"
CARD = b"---\nlibrary_name: hf_connectome\ntags:\n- connectome\n---\n# A wiring\n"


@pytest.fixture(scope="module")
def connectome():
    return drawn(tiny_model("gpt2"))


@pytest.fixture(scope="module")
def other():
    return drawn(tiny_model("gpt2"), seed=1)


@pytest.fixture(scope="module")
def folder(connectome, tmp_path_factory):
    path = tmp_path_factory.mktemp("wiring")
    connectome.save_pretrained(path)
    return path


@pytest.fixture
def alice(client):
    client.log_in(ALICE)
    return HfApi(token=ALICE)


def files_in(folder):
    return {file.name: file for file in folder.iterdir()}


def push(folder, repo=REPO, **options):
    create_repository(repo, private=options.pop("private", None), token=ALICE)
    return commit(files_in(folder), repo, message="a wiring", token=ALICE, **options)


def num_commits(api, repo=REPO):
    return len(api.list_repo_commits(repo)) - 1  # without the one that created it


# ---- pulling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_what_was_pushed_is_fetched_bit_for_bit(client, folder, xet):
    client.use_xet(xet)
    push(folder)
    fetched = fetch(REPO)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert (fetched / name).read_bytes() == (folder / name).read_bytes()


def test_folder_is_taken_as_it_is_and_nobody_is_asked(client, hub, folder):
    assert fetch(folder) == folder
    assert fetch(folder.parent, subfolder=folder.name) == folder
    assert hub.log == []
    with pytest.raises(FormatError, match="is a folder here, which has no revisions"):
        fetch(folder, revision="generation-3")


def test_branch_tag_and_commit_are_revisions(alice, folder, connectome, other, tmp_path):
    first = push(folder, tag="generation-0")
    other.save_pretrained(tmp_path / "other")
    push(tmp_path / "other", branch="seed-1")
    for revision, wanted in (
        (None, connectome),
        ("generation-0", connectome),
        (first.commit, connectome),
        ("seed-1", other),
    ):
        assert Connectome.from_pretrained(REPO, revision=revision) == wanted


def test_origin_names_the_repository_and_the_commit(client, folder, connectome):
    pushed = push(folder)
    fetched = Connectome.from_pretrained(REPO)
    assert fetched.config.origin == f"{REPO}@{pushed.commit}"
    assert ConnectomeModel.from_pretrained(REPO).connectome.config.origin == fetched.config.origin
    assert Connectome.from_pretrained(folder).config.origin is None


def test_subfolder_of_a_repository_is_fetched(alice, folder, connectome):
    create_repository(REPO)
    inside = {f"connectome/{name}": file for name, file in files_in(folder).items()}
    commit({**inside, "config.json": b"{}"}, REPO, message="a checkpoint")
    assert Connectome.from_pretrained(REPO, subfolder="connectome") == connectome


def test_only_what_is_needed_is_downloaded(alice, folder):
    create_repository(REPO)
    many = {"big.safetensors": b"0" * 1000, "tokenizer.json": b"{}", "README.md": CARD}
    commit({**files_in(folder), **many}, REPO, message="more")
    assert set(files_in(fetch(REPO))) == {CONFIG_FILE, WEIGHTS_FILE}
    with_tokenizer = fetch(REPO, also=hub_module.TOKENIZER_FILES)
    assert set(files_in(with_tokenizer)) == {CONFIG_FILE, WEIGHTS_FILE, "tokenizer.json"}


def test_cache_dir_takes_the_place_of_the_usual_cache(client, folder, tmp_path):
    push(folder)
    assert fetch(REPO, cache_dir=tmp_path / "mine").is_relative_to(tmp_path / "mine")
    assert not (client.home / "hub").exists()


def test_second_fetch_downloads_nothing(client, hub, folder):
    push(folder)
    fetch(REPO)
    before = len(hub.log)
    fetch(REPO)
    assert not [target for _, target, *_ in hub.log[before:] if "/resolve/" in target]


def test_private_repository_is_fetched_with_a_token(client, folder, connectome):
    push(folder, private=True)
    assert Connectome.from_pretrained(REPO, token=ALICE) == connectome
    client.log_in(ALICE)
    assert read(fetch(REPO, force_download=True)) == connectome


# ---- without the Hub -----------------------------------------------------------------------------


def test_warm_cache_serves_when_the_hub_is_gone(client, hub, folder, connectome):
    push(folder, tag="generation-0")
    fetch(REPO, revision="generation-0")
    fetch(REPO)
    hub.stop()
    assert Connectome.from_pretrained(REPO) == connectome
    assert Connectome.from_pretrained(REPO, revision="generation-0") == connectome


@pytest.mark.parametrize("way", ["local_files_only", "offline"])
def test_warm_cache_serves_offline_and_nobody_is_asked(client, hub, folder, connectome, way):
    push(folder)
    fetch(REPO)
    before = len(hub.log)
    if way == "offline":
        client.go_offline()
    assert Connectome.from_pretrained(REPO, local_files_only=way != "offline") == connectome
    assert hub.log[before:] == []


@pytest.mark.parametrize("way", ["local_files_only", "offline", "stopped"])
def test_cold_cache_is_named_when_the_hub_cannot_be_asked(client, hub, folder, way):
    push(folder)
    if way == "offline":
        client.go_offline()
    elif way == "stopped":
        hub.stop()
    with pytest.raises(HubError, match=r"'org/wiring'.*cache.*hf download org/wiring"):
        fetch(REPO, local_files_only=way == "local_files_only")


# ---- refusals, each with its own message ---------------------------------------------------------


def test_private_repository_is_refused_to_a_visitor(client, folder):
    push(folder, private=True)
    with pytest.raises(HubError, match=r"to a visitor without a token.*hf auth login"):
        fetch(REPO)


def test_private_repository_is_refused_to_another_user(client, folder):
    push(folder, private=True)
    client.log_in("hf_bob")
    with pytest.raises(HubError, match=r"or it is private and this token may not see it.*whoami"):
        fetch(REPO)


def test_private_repository_says_no_more_than_a_missing_one(client, folder):
    push(folder, private=True)
    said = []
    for name in (REPO, "org/nothing"):
        with pytest.raises(HubError) as error:
            fetch(name)
        said.append(str(error.value).replace(name, "X"))
    assert said[0] == said[1]


def test_gated_repository_is_refused_until_access_is_granted(client, hub, alice, folder):
    push(folder)
    alice.update_repo_settings(REPO, gated="manual")
    client.log_in("hf_bob")
    with pytest.raises(HubError, match="is gated: its owner grants access one by one"):
        fetch(REPO)
    hub.repositories["model", REPO].granted.add("bob")
    assert fetch(REPO)


def test_wrong_token_is_named(client, folder):
    push(folder)
    with pytest.raises(HubError, match=r"the token is not valid.*HTTP 401"):
        fetch(REPO, token="hf_expired")


def test_missing_revision_is_refused_with_those_that_there_are(client, folder):
    push(folder, tag="generation-0")
    with pytest.raises(HubError, match=r"no revision 'generation-9'.*'main', 'generation-0'"):
        fetch(REPO, revision="generation-9")


def test_dataset_is_told_from_a_model(client, alice):
    alice.create_repo("org/texts", repo_type="dataset")
    with pytest.raises(HubError, match="is a dataset on the Hub, not a model repository"):
        fetch("org/texts")


def test_model_without_a_connectome_is_named(client, alice):
    create_repository(REPO)
    commit({"config.json": b"{}", "model.safetensors": b"0"}, REPO, message="a whole model")
    with pytest.raises(FormatError, match=r"holds no connectome.*Connectome\.from_model"):
        fetch(REPO)


def test_other_adapter_is_named(client, alice):
    create_repository(REPO)
    lora = json.dumps({"peft_type": "LORA", "r": 8}).encode()
    commit({CONFIG_FILE: lora, WEIGHTS_FILE: b"0"}, REPO, message="another adapter")
    with pytest.raises(FormatError, match="LORA"):
        Connectome.from_pretrained(REPO)


def test_trained_checkpoint_is_named(client, alice, folder):
    create_repository(REPO)
    inside = {f"connectome/{name}": file for name, file in files_in(folder).items()}
    commit({**inside, "config.json": b"{}"}, REPO, message="a checkpoint")
    with pytest.raises(FormatError, match="trained sparse checkpoint, with its connectome in a"):
        fetch(REPO)


def test_what_is_neither_folder_nor_hub_id_is_named(client, hub):
    with pytest.raises(FormatError, match="is no folder here and cannot be a Hub id"):
        fetch("runs/cpu/generation-6")
    assert hub.log == []


# ---- pushing -------------------------------------------------------------------------------------


def test_push_is_one_commit_with_its_tag(alice, folder):
    pushed = push(folder, tag="generation-0")
    assert num_commits(alice) == 1
    assert pushed.commit == alice.model_info(REPO).sha
    assert hub_module.tags(REPO) == {"generation-0": pushed.commit}
    assert set(alice.list_repo_files(REPO)) == {".gitattributes", CONFIG_FILE, WEIGHTS_FILE}


def test_same_push_again_makes_no_commit(client, hub, alice, folder):
    first = push(folder, tag="generation-0")
    before = len(hub.log)
    assert push(folder, tag="generation-0") == first
    assert num_commits(alice) == 1
    assert not [target for target in steps(hub.log[before:], "PUT") if "/lfs/" in target]


def test_changed_push_moves_the_tag(alice, folder, other, tmp_path):
    first = push(folder, tag="best")
    other.save_pretrained(tmp_path / "other")
    second = push(tmp_path / "other", tag="best")
    assert second.commit != first.commit
    assert hub_module.tags(REPO) == {"best": second.commit}


def test_named_files_are_deleted_by_the_same_commit(alice, folder):
    create_repository(REPO)
    commit({"old.txt": b"1"}, REPO, message="old")
    commit(files_in(folder), REPO, message="new", delete=["old.txt", "never-there.txt"])
    assert num_commits(alice) == 2
    assert "old.txt" not in alice.list_repo_files(REPO)


def test_repository_is_created_once_and_private_if_asked(alice):
    assert create_repository(REPO, private=True) == REPO
    assert create_repository(REPO) == REPO
    assert alice.model_info(REPO).private
    assert create_repository("mine") == "alice/mine"


@pytest.mark.parametrize(
    ("user", "said"),
    [("hf_bob", r"may not do that there.*another namespace.*HTTP 403"), (False, r"HTTP 401")],
    ids=["foreign", "visitor"],
)
def test_foreign_namespace_is_refused(client, user, said):
    with pytest.raises(HubError, match=said):
        create_repository(REPO, token=user)


def test_push_without_the_right_to_write_is_refused(client, folder):
    push(folder)
    with pytest.raises(HubError, match="may not do that there"):
        commit({"a": b"1"}, REPO, message="no", token="hf_bob")


def test_push_to_a_repository_that_is_not_there_is_refused(alice, folder):
    with pytest.raises(HubError, match="the Hub has no repository 'org/wiring'"):
        commit(files_in(folder), REPO, message="no")


# ---- looking -------------------------------------------------------------------------------------


def test_search_finds_what_carries_the_tag_newest_first(alice):
    for name in ("org/first", "alice/second", "org/untagged"):
        create_repository(name)
        card = CARD.replace(b"- connectome", b"- other") if "untagged" in name else CARD
        commit({"README.md": card}, name, message="card")
    assert [found.repo_id for found in search()] == ["alice/second", "org/first"]
    assert [found.repo_id for found in search("FIRST")] == ["org/first"]
    assert [found.repo_id for found in search(author="alice")] == ["alice/second"]
    assert len(search(limit=1)) == 1
    assert "hf_connectome" in search()[0].tags
    assert search()[0].last_modified > search()[1].last_modified


# ---- models --------------------------------------------------------------------------------------


def test_fresh_model_is_built_from_a_hub_id_alone(client, hub, folder, connectome):
    push(folder)
    here = ConnectomeModel.from_pretrained(folder, seed=3).get_base_model().state_dict()
    there = ConnectomeModel.from_pretrained(REPO, seed=3).get_base_model().state_dict()
    assert here.keys() == there.keys()
    assert all((here[name] == there[name]).all() for name in here)


def test_peft_takes_the_fetched_folder_and_the_hub_id(client, folder, connectome):
    from peft import PeftModel

    push(folder)
    for source in (fetch(REPO), REPO):
        host = tiny_model("gpt2")
        masked = PeftModel.from_pretrained(host, str(source)).merge_and_unload()
        weights = masked.state_dict()
        name = connectome.names[0]
        assert ((weights[name] != 0) == connectome.mask(name)).all()


# ---- publishing ----------------------------------------------------------------------------------

CARD_FILES = {"README.md", "densities.png"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}
TAGS = [f"generation-{g}" for g in range(4)]


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Evolve three generations; leave a tokenizer beside each, as the recipe does."""
    folder = tmp_path_factory.mktemp("run")
    evolve_worker.trainer(folder).train()
    for tag in TAGS:
        tokenizer().save_pretrained(folder / tag)
    return folder


@pytest.fixture(scope="module")
def published_once(run, tmp_path_factory):
    """Publish the run to a Hub that several tests look at and none changes."""
    home = tmp_path_factory.mktemp("published")
    with Hub({ALICE: "alice"}, {"org": ["alice"]}) as hub, pytest.MonkeyPatch.context() as patch:
        Client(hub, home, patch).log_in(ALICE)
        pushes = publish(run, REPO, license="mit")
        patch.undo()
        yield hub, pushes


@pytest.fixture
def published(published_once, tmp_path, monkeypatch):
    hub, pushes = published_once
    client = Client(hub, tmp_path / "home", monkeypatch)
    client.log_in(ALICE)
    yield Published(hub, client, pushes, HfApi(token=ALICE))
    close_session()


@dataclass
class Published:
    hub: Hub
    client: Client
    pushes: list
    api: HfApi

    def files(self, revision="main"):
        files = self.hub.repositories["model", REPO].at(revision).files
        return {path: file.read() for path, file in files.items()}


def start_of(run, count, folder):
    """Make a run that has got as far as its first generations."""
    for tag in TAGS[:count]:
        if not (folder / tag).exists():
            (folder / tag).symlink_to(run / tag)
    return folder


def test_each_generation_is_one_commit_with_its_tag(published, run):
    pushes = published.pushes
    assert [push.tag for push in pushes] == TAGS
    assert hub_module.tags(REPO) == {push.tag: push.commit for push in pushes}
    history = [commit.commit_id for commit in published.api.list_repo_commits(REPO)]
    assert history[:-1] == [push.commit for push in reversed(pushes)]
    for tag in TAGS:
        there = Connectome.from_pretrained(REPO, revision=tag)
        assert there == Connectome.from_pretrained(run / tag)
        assert there.lineage == Connectome.from_pretrained(run / tag).lineage


def test_published_repository_is_complete(published):
    files = published.files()
    assert {CONFIG_FILE, WEIGHTS_FILE} | CARD_FILES | TOKENIZER <= set(files)
    assert not {"config.json", "model.safetensors", "training_args.bin"} & set(files)
    assert files["densities.png"].startswith(b"\x89PNG")


def test_published_card_is_read_by_the_hub(published):
    info = published.api.model_info(REPO)
    assert info.library_name == "hf_connectome"
    assert {"connectome", "license:mit"} <= set(info.tags)
    card = ModelCard.load(REPO)
    card.validate()
    assert REPO in card.text
    assert [found.repo_id for found in search()] == [REPO]


def test_published_tokenizer_is_the_one_beside_the_run(published, run):
    there = AutoTokenizer.from_pretrained(REPO, revision="generation-2")
    assert there.get_vocab() == AutoTokenizer.from_pretrained(run / "generation-2").get_vocab()


def test_no_published_file_names_a_local_path(published, run):
    local = {str(run), str(Path.home()), tempfile.gettempdir(), str(Path(__file__).parents[1])}
    found = [
        (path, place)
        for tag in TAGS
        for path, content in published.files(tag).items()
        for place in local
        if f"{place}/".encode() in content
    ]
    assert found == []


def test_publishing_the_last_generation_again_makes_no_commit(published, run):
    again = publish(run / TAGS[-1], REPO, license="mit")
    assert again == published.pushes[-1:]
    assert num_commits(published.api) == len(TAGS)


def test_run_of_another_connectome_is_refused(published, run, tmp_path):
    other = Connectome.from_pretrained(run / "generation-1")
    config = replace(other.config, generation=3)
    other.replace(config=config).save_pretrained(tmp_path / "generation-3")
    with pytest.raises(HubError, match="another connectome under the tag 'generation-3'"):
        publish(tmp_path, REPO)
    assert hub_module.tags(REPO) == {push.tag: push.commit for push in published.pushes}


def test_publishing_goes_on_with_a_run_that_was_cut_off_or_has_grown(hub, alice, run, tmp_path):
    publish(start_of(run, 1, tmp_path), REPO)
    hub.fail("/commit/main", drop="request", times=None)
    with pytest.raises(HubError, match="connection to the Hub was lost"):
        publish(start_of(run, 2, tmp_path), REPO)
    hub.heal()
    assert list(hub_module.tags(REPO)) == TAGS[:1]
    publish(tmp_path, REPO)
    assert list(hub_module.tags(REPO)) == TAGS[:2]
    assert num_commits(alice) == 2
    assert Connectome.from_pretrained(REPO) == Connectome.from_pretrained(run / TAGS[1])


def test_published_weights_are_compressed_where_that_is_smaller(alice, tmp_path):
    thin = drawn(tiny_model("gpt2"), density=0.02)
    thin.save_pretrained(tmp_path / "plain")
    thin.push_to_hub(REPO)
    file = fetch(REPO) / WEIGHTS_FILE
    with safe_open(file, "np") as weights:
        assert any(name.endswith(".zst") for name in weights.keys())  # noqa: SIM118
    assert file.stat().st_size < (tmp_path / "plain" / WEIGHTS_FILE).stat().st_size


def test_connectome_and_model_push_themselves(alice, connectome):
    pushed = connectome.push_to_hub(REPO, private=True, tokenizer=tokenizer())
    assert alice.model_info(REPO).private
    assert pushed.commit == alice.model_info(REPO).sha
    assert set(alice.list_repo_files(REPO)) >= TOKENIZER
    model = ConnectomeModel.from_pretrained(REPO, seed=0)
    model.push_to_hub("org/again")
    assert Connectome.from_pretrained("org/again") == connectome


def test_connectome_is_not_put_beside_a_whole_model(alice, folder):
    create_repository(REPO)
    commit({"config.json": b"{}"}, REPO, message="a whole model")
    with pytest.raises(HubError, match="holds a whole model"):
        publish(folder, REPO)
    assert num_commits(alice) == 1


def test_checkpoint_is_loaded_from_the_hub_by_transformers_alone(alice, run):
    checkpoint = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    publish(checkpoint, REPO, parent="org/parent")
    assert not [p for p in alice.list_repo_files(REPO) if p.endswith((".bin", ".pt", ".pth"))]
    here = state_of(AutoModelForCausalLM.from_pretrained(checkpoint))
    assert same(state_of(AutoModelForCausalLM.from_pretrained(REPO)), here)
    wiring = Connectome.from_pretrained(REPO, subfolder="connectome")
    assert all((here[name][~wiring.mask(name)] == 0).all() for name in wiring)


# ---- another process -----------------------------------------------------------------------------

PULL = """
import sys
from hf_connectome import ConnectomeModel
model = ConnectomeModel.from_pretrained(sys.argv[1], revision=sys.argv[2], seed=0)
print(model.connectome.digest)
"""


@pytest.mark.slow
def test_another_process_pulls_the_generation_that_this_one_pushed(published, run):
    digest = Connectome.from_pretrained(run / "generation-2").digest
    assert published.client.python(PULL, REPO, "generation-2").strip() == digest


@pytest.mark.slow
def test_another_process_pulls_by_xet(client, folder, connectome):
    client.use_xet()
    push(folder, tag="generation-3")
    assert client.python(PULL, REPO, "generation-3").strip() == connectome.digest
