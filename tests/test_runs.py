from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from hf_connectome.errors import RunError, StorageError
from hf_connectome.runs import (
    CONNECTOME_FOLDER,
    RUN_FILE,
    STATE_FILE,
    claim,
    deciding,
    is_complete,
    last_checkpoint,
    step_of,
)
from hf_connectome.storage import CONFIG_FILE, WEIGHTS_FILE

SETTINGS = {"generations": 6, "learning_rate": 6e-4, "betas": (0.9, 0.95), "scope": None}
WEIGHTS = save({"w": np.zeros(3, np.float32)})


def pickled():
    stream = io.BytesIO()
    torch.save({"step": 5}, stream)
    return stream.getvalue()


PARTS = {
    "model.safetensors": WEIGHTS,
    "optimizer.pt": pickled(),
    "scheduler.pt": pickled(),
    "rng_state.pth": pickled(),
    f"{CONNECTOME_FOLDER}/{WEIGHTS_FILE}": WEIGHTS,
    f"{CONNECTOME_FOLDER}/{CONFIG_FILE}": b"config",
}


def checkpoint_at(folder, step, *, without=(), **changes):
    checkpoint = folder / f"checkpoint-{step}"
    state = json.dumps({"global_step": step} | changes).encode()
    for name, content in (PARTS | {STATE_FILE: state}).items():
        if name not in without:
            (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
            (checkpoint / name).write_bytes(content)
    return checkpoint


# ---- whose folder it is --------------------------------------------------------------------------


def test_new_folder_is_claimed_and_known_again(tmp_path):
    folder = tmp_path / "runs" / "one"
    assert claim(folder, SETTINGS) is False
    assert claim(folder, dict(reversed(SETTINGS.items()))) is True
    assert json.loads((folder / RUN_FILE).read_text()) == {**SETTINGS, "betas": [0.9, 0.95]}
    assert [file.name for file in folder.iterdir()] == [RUN_FILE]


def test_files_of_somebody_else_do_not_hinder_a_claim(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    assert claim(tmp_path, SETTINGS) is False
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_first_look_compares_what_is_known_and_records_nothing(tmp_path):
    assert claim(tmp_path, SETTINGS, record=False) is False
    assert not (tmp_path / RUN_FILE).exists()
    claim(tmp_path, SETTINGS | {"corpus": "found later"})
    assert claim(tmp_path, SETTINGS, record=False) is True
    with pytest.raises(RunError, match="generations: 6 there, 7 here"):
        claim(tmp_path, SETTINGS | {"generations": 7}, record=False)


def test_another_run_is_refused_with_every_difference(tmp_path):
    claim(tmp_path, SETTINGS)
    recorded = (tmp_path / RUN_FILE).read_bytes()
    other = {"generations": 7, "learning_rate": 6e-4, "betas": [0.9, 0.95], "seed": 1}
    with pytest.raises(
        RunError,
        match=r"another configuration: generations: 6 there, 7 here; seed: None there, 1 here\. "
        r"Use another --output_dir, or the recorded settings",
    ):
        claim(tmp_path, other)
    assert (tmp_path / RUN_FILE).read_bytes() == recorded


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_unreadable_record_is_refused_by_its_name(tmp_path, text):
    (tmp_path / RUN_FILE).write_text(text)
    with pytest.raises(RunError, match=rf"{RUN_FILE} .*cannot be read.* another --output_dir"):
        claim(tmp_path, SETTINGS)
    assert (tmp_path / RUN_FILE).read_text() == text


def test_claim_is_refused_when_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="cannot write"):
        claim(tmp_path / "file" / "run", SETTINGS)


def test_settings_that_change_no_result_do_not_decide():
    settings = {"seed": 1, "output_dir": "x", "report_to": [], "save_total_limit": 2, "bf16": True}
    assert deciding(settings) == {"seed": 1, "bf16": True}


# ---- what is whole -------------------------------------------------------------------------------


def test_checkpoint_is_complete_with_all_its_parts(tmp_path):
    assert is_complete(checkpoint_at(tmp_path, 5))


@pytest.mark.parametrize("missing", [*PARTS, STATE_FILE])
def test_checkpoint_is_incomplete_when_a_part_is_missing(tmp_path, missing):
    assert not is_complete(checkpoint_at(tmp_path, 5, without=[missing]))


@pytest.mark.parametrize("cut", [name for name in PARTS if not name.endswith(".json")])
@pytest.mark.parametrize("left", [0, 7, -1])
def test_checkpoint_is_incomplete_when_a_part_is_cut_short(tmp_path, cut, left):
    checkpoint = checkpoint_at(tmp_path, 5)
    (checkpoint / cut).write_bytes(PARTS[cut][:left])
    assert not is_complete(checkpoint)


@pytest.mark.parametrize(
    "text", ["", '{"global_step": 5', "[]", "null", '{"global_step": 4}', "{}"]
)
def test_checkpoint_is_incomplete_when_its_state_is_not_that_of_its_step(tmp_path, text):
    checkpoint = checkpoint_at(tmp_path, 5)
    (checkpoint / STATE_FILE).write_text(text)
    assert not is_complete(checkpoint)


def test_checkpoint_is_incomplete_when_its_state_is_no_text(tmp_path):
    checkpoint = checkpoint_at(tmp_path, 5)
    (checkpoint / STATE_FILE).write_bytes(b"\xff\xfe\x00")
    assert not is_complete(checkpoint)


@pytest.mark.parametrize(
    "weights", ["model-00001-of-00002.safetensors", "pytorch_model_fsdp_0/__0_0.distcp"]
)
def test_checkpoint_may_be_sharded(tmp_path, weights):
    checkpoint = checkpoint_at(tmp_path, 5, without=["model.safetensors"])
    (checkpoint / weights).parent.mkdir(exist_ok=True)
    (checkpoint / weights).write_bytes(WEIGHTS)
    assert is_complete(checkpoint)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("checkpoint-12", 12), ("checkpoint-best", -1), ("checkpoint-²", -1), ("checkpoint", -1)],
)
def test_step_is_read_off_the_name(tmp_path, name, expected):
    assert step_of(tmp_path / name) == expected


# ---- the last checkpoint -------------------------------------------------------------------------


@pytest.mark.parametrize("made", [True, False])
def test_there_is_no_checkpoint_in_an_empty_folder(tmp_path, made):
    folder = tmp_path / "run"
    if made:
        folder.mkdir()
    assert last_checkpoint(folder) is None


def test_last_checkpoint_is_that_of_the_highest_step(tmp_path):
    for step in (9, 100, 20):
        checkpoint_at(tmp_path, step)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-100"


def test_unfinished_checkpoints_are_passed_over_and_left_alone(tmp_path, caplog):
    checkpoint_at(tmp_path, 5, without=["scheduler.pt"])
    checkpoint_at(tmp_path, 10)
    checkpoint_at(tmp_path, 15, without=[STATE_FILE])
    checkpoint_at(tmp_path, 20, global_step=19)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert len(list(tmp_path.iterdir())) == 4
    assert caplog.text.count("was not written to its end; an earlier one is used") == 2


def test_there_is_no_checkpoint_when_none_was_finished(tmp_path):
    checkpoint_at(tmp_path, 5, without=["scheduler.pt"])
    (tmp_path / "checkpoint-10").mkdir()
    assert last_checkpoint(tmp_path) is None


def test_what_no_trainer_wrote_is_left_alone(tmp_path):
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-notes.txt").write_text("mine")
    (tmp_path / "checkpoint-30").write_text("a file")
    assert last_checkpoint(tmp_path) is None
    assert len(list(tmp_path.iterdir())) == 3
    checkpoint_at(tmp_path, 5)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
