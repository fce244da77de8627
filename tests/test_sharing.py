"""Generations that are pushed while a run goes on, and what a failing Hub does to the run."""

import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from transformers import Trainer, TrainingArguments

sys.path.insert(0, str(Path(__file__).parent / "workers"))
import evolve_worker

from hf_connectome import (
    Connectome,
    ConnectomeModel,
    GenerationalArguments,
    MaskCallback,
    random_twin,
)
from hf_connectome import hub as hub_module
from hf_connectome.data import collate
from hf_connectome.errors import ConfigError, FormatError, HubError
from hf_connectome.provenance import Provenance
from hf_connectome.publishing import publish

REPO = "org/evolving"
TAGS = [f"generation-{g}" for g in range(4)]


@pytest.fixture
def alice(client):
    client.log_in("hf_alice")
    return HfApi(token="hf_alice")


def sharing(folder, **settings):
    return evolve_worker.trainer(folder, push_to_hub=REPO, hub_private_repo=True, **settings)


def history(alice):
    return [commit.title for commit in reversed(alice.list_repo_commits(REPO))][1:]


# ---- settings ------------------------------------------------------------------------------------


def test_repository_is_named_by_either_setting():
    for settings in (
        {"push_to_hub": REPO},
        {"push_to_hub": True, "hub_model_id": REPO},
        {"push_to_hub": REPO, "hub_model_id": REPO},
    ):
        arguments = GenerationalArguments("out", use_cpu=True, **settings)
        assert (arguments.push_to_hub, arguments.hub_model_id) == (True, REPO)


def test_two_names_for_the_repository_are_refused():
    with pytest.raises(ConfigError, match=r"push_to_hub is 'org/a' but hub_model_id 'org/b'"):
        GenerationalArguments("out", push_to_hub="org/a", hub_model_id="org/b")


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_strategy_that_would_push_checkpoints_is_refused(strategy):
    with pytest.raises(ConfigError, match=f"hub_strategy is '{strategy}'; what is pushed are gen"):
        GenerationalArguments("out", push_to_hub=REPO, hub_strategy=strategy)


# ---- a run ---------------------------------------------------------------------------------------


def test_every_generation_is_a_commit_and_a_tag(alice, tmp_path):
    run = sharing(tmp_path)
    run.train()
    assert list(hub_module.tags(REPO)) == TAGS
    assert [title.partition(":")[0] for title in history(alice)] == [
        "Connectome", "Generation 1", "Generation 2", "Generation 3",
    ]  # fmt: skip
    assert alice.model_info(REPO).private
    for tag in TAGS:
        there = Connectome.from_pretrained(REPO, revision=tag)
        assert there == Connectome.from_pretrained(tmp_path / tag)
    assert not [name for name in alice.list_repo_files(REPO) if name.endswith((".bin", ".pt"))]


def test_generation_is_there_before_the_next_one_is_trained(alice, tmp_path):
    run = sharing(tmp_path)
    seen = []

    def look(step):
        if step:
            run._publisher._queue.join()  # what was begun at the last boundary
            seen.append((step, len(hub_module.tags(REPO))))

    run.keep_early_weights = look
    run.train()
    assert {count for step, count in seen if 0 < step < 6} == {1}
    assert {count for step, count in seen if 6 < step < 12} == {2}
    assert {count for step, count in seen if 12 < step < 18} == {3}


def test_end_strategy_pushes_when_all_is_done(alice, tmp_path):
    run = sharing(tmp_path, hub_strategy="end")
    run.keep_early_weights = lambda step: seen.append(len(hub_module.tags(REPO)))
    seen = []
    run.train()
    assert set(seen) == {0}
    assert list(hub_module.tags(REPO)) == TAGS


def test_pushed_provenance_says_how_it_was_trained(alice, tmp_path):
    sharing(tmp_path, learning_rate=3e-3).train()
    facts = Provenance.read(hub_module.fetch(REPO, also=["provenance.json"]))
    assert (facts.learning_rate, facts.seed, facts.num_processes) == (3e-3, 5, 1)
    assert facts.train_seconds > 0
    assert facts.precision == "float32"


def test_run_without_rights_is_refused_before_training(client, tmp_path):
    client.log_in("hf_bob")
    with pytest.raises(HubError, match="this token may not do that there"):
        sharing(tmp_path)
    assert not list(tmp_path.glob("generation-*"))


def test_repository_of_another_run_is_refused_before_training(alice, tmp_path):
    sharing(tmp_path / "first").train()
    other = sharing(tmp_path / "second", learning_rate=3e-3)  # the same dense start
    with pytest.raises(HubError, match=r"has 'generation-1', .* already, and this run has 'gener"):
        other.train()
    assert other.state.global_step == 0
    assert len(history(alice)) == 4


# ---- a Hub that fails ----------------------------------------------------------------------------


def test_training_goes_on_while_pushes_fail_and_the_same_command_pushes(
    hub, alice, tmp_path, caplog
):
    hub.fail("/commit/main", status=403, times=None)
    run = sharing(tmp_path, save_steps=6)
    with pytest.raises(HubError, match=r"generation-0, .*generation-3 could not be pushed to 'org"):
        run.train()
    assert "generation-0 was not pushed yet" in caplog.text
    assert run.generation == 3
    kept = [Connectome.from_pretrained(tmp_path / tag) for tag in TAGS]
    assert hub_module.tags(REPO) == {}

    hub.heal()
    sharing(tmp_path, save_steps=6).train(resume_from_checkpoint=True)
    assert [Connectome.from_pretrained(REPO, revision=tag) for tag in TAGS] == kept
    assert len(history(alice)) == 4


def test_generation_of_another_run_under_the_tag_is_refused(alice, tmp_path):
    sharing(tmp_path / "first").train()
    run = sharing(tmp_path / "first")
    saved = tmp_path / "first" / "generation-1"
    random_twin(Connectome.from_pretrained(saved), seed=0).save_pretrained(saved)
    with pytest.raises(HubError, match="another connectome under the tag 'generation-1': digest"):
        run.push_to_hub()


def test_resumed_run_leaves_alone_what_is_there(hub, alice, tmp_path):
    sharing(tmp_path, save_steps=6).train()
    before = hub_module.tags(REPO)
    sharing(tmp_path, save_steps=6).train(resume_from_checkpoint=True)
    assert hub_module.tags(REPO) == before
    assert len(history(alice)) == 4


def test_push_to_hub_by_hand_pushes_what_is_saved(alice, tmp_path):
    run = evolve_worker.trainer(tmp_path, hub_model_id=REPO)
    run.train()
    run.push_to_hub()
    assert list(hub_module.tags(REPO)) == TAGS


# ---- children ------------------------------------------------------------------------------------


@pytest.fixture
def child(alice, tmp_path):
    """Train two steps on a fresh model that came from the Hub; return the checkpoint."""
    sharing(tmp_path / "run").train()
    model = ConnectomeModel.from_pretrained(REPO, revision="generation-2", seed=0)
    arguments = TrainingArguments(
        str(tmp_path / "child"), max_steps=2, save_steps=2, use_cpu=True, report_to="none"
    )
    blocks = [{"input_ids": torch.randint(0, 60, (8,)).tolist()} for _ in range(16)]
    trainer = Trainer(
        model.get_base_model(),
        arguments,
        train_dataset=blocks,
        data_collator=collate,
        callbacks=[MaskCallback(model.connectome)],
    )
    trainer.train()
    return tmp_path / "child" / "checkpoint-2"


def test_card_of_a_child_names_its_connectome_and_revision(alice, child):
    publish(child, "org/child")
    commit = hub_module.tags(REPO)["generation-2"]
    card = (hub_module.fetch("org/child", subfolder="connectome", also=["../README.md"])).parent
    text = Path(alice.hf_hub_download("org/child", "README.md")).read_text()
    assert f"base_model: {REPO}" in text
    assert commit in text
    assert (card / "connectome" / "adapter_model.safetensors").is_file()


def test_checkpoint_with_weights_where_there_are_none_is_refused(alice, child):
    from safetensors.torch import load_file, save_file

    weights = load_file(child / "model.safetensors")
    name = Connectome.from_pretrained(child / "connectome").names[0]
    weights[name] = torch.ones_like(weights[name])
    save_file(weights, child / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FormatError, match=f"'{name}' has weights that are not 0 where the"):
        publish(child, "org/child")


def test_checkpoint_is_not_put_beside_a_connectome(alice, child):
    with pytest.raises(HubError, match=r"holds a connectome .*another repository"):
        publish(child, REPO)
