"""What a push puts there, what it takes away, and what it refuses before anything is created."""

import dataclasses
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from tiny import drawn, tiny_model

from hf_connectome import Connectome, ConnectomeConfig, publish
from hf_connectome import hub as hub_module
from hf_connectome.errors import ConfigError, FormatError, HubError
from hf_connectome.hosts import wire
from hf_connectome.provenance import PROVENANCE_FILE, Provenance
from hf_connectome.publisher import GenerationPublisher
from hf_connectome.publishing import is_published

REPO = "org/pushed"


@pytest.fixture
def alice(client):
    client.log_in("hf_alice")
    return HfApi(token="hf_alice")


def generation(number, seed=0):
    """Draw a connectome that says it is of this generation."""
    lineage = [{"generation": g, "density": 0.8**g} for g in range(number)]
    made = drawn(tiny_model("gpt2"), density=0.8**number, seed=seed)
    config = dataclasses.replace(made.config, generation=number, lineage=lineage)
    return made.replace(config=config)


@pytest.fixture
def run(tmp_path):
    for number in range(4):
        generation(number).save_pretrained(tmp_path / "run" / f"generation-{number}")
    return tmp_path / "run"


def content(name, revision="main"):
    return Path(HfApi().hf_hub_download(REPO, name, revision=revision)).read_text()


def num_commits(api):
    return len(api.list_repo_commits(REPO))


# ---- what stays of an earlier push ---------------------------------------------------------------


def test_files_of_an_earlier_connectome_do_not_stay(alice, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    drawn(tiny_model("gpt2")).save_pretrained(first)
    for name in ("tokenizer.json", "vocab.json"):
        (first / name).write_text("{}")
    Provenance(hardware="a machine of the first").write(first)
    drawn(tiny_model("vit")).save_pretrained(second)
    publish(first, REPO)
    assert {"tokenizer.json", "vocab.json", PROVENANCE_FILE} <= set(alice.list_repo_files(REPO))
    publish(second, REPO)
    assert not {"tokenizer.json", "vocab.json", PROVENANCE_FILE} & set(alice.list_repo_files(REPO))
    assert "a machine of the first" not in content("README.md")


def test_weights_of_an_earlier_checkpoint_do_not_stay(alice, tmp_path):
    model = tiny_model("gpt2")
    connectome = drawn(model)
    for name, size, magnitude in (("one", "5GB", 0.02), ("many", "20KB", 0.04)):
        wire(model, connectome, reset="sign_constant", magnitude=magnitude)
        model.save_pretrained(tmp_path / name, max_shard_size=size)
        connectome.save_pretrained(tmp_path / name / "connectome")
        publish(tmp_path / name, REPO)
    files = alice.list_repo_files(REPO)
    assert "model.safetensors" not in files
    assert "model.safetensors.index.json" in files
    loaded = type(model).from_pretrained(REPO)
    assert loaded.transformer.wte.weight.detach().abs().max() == pytest.approx(0.04)


def test_same_push_without_the_flags_keeps_what_they_said(alice, run):
    publish(run, REPO, license="mit")
    before = num_commits(alice)
    assert [pushed.tag for pushed in publish(run, REPO)] == ["generation-3"]
    assert num_commits(alice) == before
    assert "license: mit" in content("README.md")


# ---- what never goes along -----------------------------------------------------------------------


def test_files_that_are_not_ours_stay_here(alice, tmp_path):
    drawn(tiny_model("gpt2")).save_pretrained(tmp_path)
    for name in ("tokenizer.pkl", "tokenizer_notes.txt", "secret.model", "optimizer.pt"):
        (tmp_path / name).write_text("mine")
    publish(tmp_path, REPO)
    odd = {"tokenizer.pkl", "tokenizer_notes.txt", "secret.model", "optimizer.pt"}
    assert odd.isdisjoint(alice.list_repo_files(REPO))


def test_config_names_no_place_on_this_machine(alice):
    made = drawn(tiny_model("gpt2"))
    config = dataclasses.replace(
        made.config, base_model_name_or_path="/home/me/base", tokenizer="/home/me/words"
    )
    made.replace(config=config).push_to_hub(REPO)
    assert "/home" not in content("adapter_config.json")


def test_provenance_is_cleaned_whoever_wrote_it(alice, tmp_path):
    drawn(tiny_model("gpt2")).save_pretrained(tmp_path)
    facts = {
        "command": "/home/me/evolve.py --hub_token hf_abcdefghijklmnopqrst --seed 3",
        "corpus": "read /home/me/texts",
        "dataset": "/home/me/texts",
        "unknown": "/home/me",
    }
    (tmp_path / PROVENANCE_FILE).write_text(json.dumps(facts))
    publish(tmp_path, REPO)
    for name in (PROVENANCE_FILE, "README.md"):
        assert "/home" not in content(name)
        assert "hf_abc" not in content(name)
    assert json.loads(content(PROVENANCE_FILE))["command"] == (
        "evolve.py --hub_token <hub_token> --seed 3"
    )


# ---- refusals ------------------------------------------------------------------------------------


def test_older_generation_does_not_become_the_head(alice, run):
    publish(run, REPO)
    with pytest.raises(HubError, match=r"is at generation 3, and .*generation-1 is generation 1"):
        publish(run / "generation-1", REPO)
    assert Connectome.from_pretrained(REPO) == generation(3)
    publish(run / "generation-1", REPO, branch="older", tag=False)
    assert Connectome.from_pretrained(REPO, revision="older") == generation(1)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"license": "Apache 2.0"}, "license"), ({"parent": "org/x"}, "parent was given")],
)
def test_nothing_is_created_for_what_is_refused(alice, run, options, said):
    with pytest.raises(ConfigError, match=said):
        publish(run, REPO, **options)
    assert not alice.repo_exists(REPO)


def test_nothing_is_created_for_a_damaged_generation(alice, run):
    weights = run / "generation-2" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(FormatError, match="generation-2"):
        publish(run, REPO)
    assert not alice.repo_exists(REPO)


def test_option_that_a_checkpoint_has_no_use_for_is_refused(alice, tmp_path):
    model = tiny_model("gpt2")
    connectome = drawn(model)
    wire(model, connectome, reset="keep")
    model.save_pretrained(tmp_path)
    connectome.save_pretrained(tmp_path / "connectome")
    with pytest.raises(ConfigError, match=r"dataset was given \('org/text'\).* is a checkpoint"):
        publish(tmp_path, REPO, dataset="org/text")


def test_busy_hub_is_not_taken_for_another_run(hub, alice, run):
    publish(run, REPO)
    shutil.rmtree(hub_module.fetch(REPO).parents[1])
    hub.fail("/resolve/.*adapter_config.json", status=403, times=None)
    with pytest.raises(HubError) as refused:
        is_published(run / "generation-1", REPO)
    assert "another" not in str(refused.value).replace("another namespace", "")


def test_push_that_another_overtakes_leaves_the_others_tag(alice, run, tmp_path, monkeypatch):
    other = tmp_path / "other" / "generation-3"
    generation(3, seed=9).save_pretrained(other)
    publish(run / "generation-2", REPO)
    looked = []

    def look(folder, repo_id, **options):
        found = is_published(folder, repo_id, **options)
        if not looked:
            looked.append(True)
            monkeypatch.setattr("hf_connectome.publishing.is_published", is_published)
            publish(other, REPO)
        return found

    monkeypatch.setattr("hf_connectome.publishing.is_published", look)
    with pytest.raises(HubError, match=r"another push came first|another connectome under"):
        publish(run / "generation-3", REPO, license="mit")
    assert Connectome.from_pretrained(REPO, revision="generation-3") == generation(3, seed=9)


# ---- in the background ---------------------------------------------------------------------------


def test_pushes_do_not_hold_the_process(alice):
    publisher = GenerationPublisher(REPO)
    (thread,) = [t for t in threading.enumerate() if t.name == "push"]
    assert thread.daemon
    publisher.finish()
    assert not thread.is_alive()


def test_failure_that_is_not_the_hubs_is_raised_at_the_end(alice, run):
    weights = run / "generation-0" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    publisher = GenerationPublisher(REPO)
    publisher.publish(run / "generation-0")
    with pytest.raises(FormatError, match="generation-0"):
        publisher.finish()


def test_skill_on_a_local_base_leaks_no_path(alice, tmp_path):
    from peft import get_peft_model

    base = tiny_model("gpt2")
    base.save_pretrained(tmp_path / "base")
    base = type(base).from_pretrained(tmp_path / "base")
    config = ConnectomeConfig(density=0.25, target_modules="all-linear", inference_mode=True)
    skill = get_peft_model(base, config)
    skill.base_model.connectome("default").push_to_hub(REPO)
    assert str(tmp_path) not in content("adapter_config.json")
    assert torch.is_tensor(base.lm_head.weight)
