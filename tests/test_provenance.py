"""What is recorded of a run, that it survives the file, and that no local path gets into it."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hf_connectome
from hf_connectome.errors import FormatError, StorageError
from hf_connectome.provenance import (
    PROVENANCE_FILE,
    Provenance,
    can_be_hub_id,
    collect,
    hardware,
    hub_id,
    is_local_path,
    public_command,
    versions,
    without_paths,
)

FULL = Provenance(
    dataset="HuggingFaceFW/fineweb",
    corpus="train: 131 documents, 712,320 tokens",
    corpus_digest="936f90148752f5d1",
    num_train_tokens=712320,
    tokens_per_step=2048,
    block_size=128,
    optimizer="adamw_torch_fused",
    learning_rate=0.003,
    lr_schedule="cosine",
    seed=0,
    precision="float32",
    num_processes=2,
    hardware="AMD EPYC",
    train_seconds=756.2,
    versions={"python": "3.11.7", "torch": "2.13.0"},
    command="recipes/evolve.py --config cpu --output_dir <output_dir>",
    created="2025-04-29",
)

# ---- the file ------------------------------------------------------------------------------------


@pytest.mark.parametrize("facts", [FULL, Provenance(), Provenance(seed=0)])
def test_facts_survive_the_file(tmp_path, facts):
    assert facts.write(tmp_path) == tmp_path / PROVENANCE_FILE
    assert Provenance.read(tmp_path) == facts


def test_unknown_facts_are_not_written(tmp_path):
    Provenance(seed=3).write(tmp_path)
    assert json.loads((tmp_path / PROVENANCE_FILE).read_text()) == {"seed": 3}


def test_every_field_has_help_and_every_fact_a_value_in_the_full_example():
    assert all(len(f.metadata["help"]) > 10 for f in fields(Provenance))
    assert None not in vars(FULL).values()


def test_nothing_is_read_where_there_is_no_file(tmp_path):
    assert Provenance.read(tmp_path) is None


def test_keys_of_later_releases_are_ignored(tmp_path):
    (tmp_path / PROVENANCE_FILE).write_text('{"seed": 1, "colour": ["red"]}')
    assert Provenance.read(tmp_path) == Provenance(seed=1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is not JSON"),
        ("[]", "holds a list; expected a JSON object"),
        ("[" * 100_000, "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        ('{"seed": "0"}', "seed is '0' (str); expected int or null"),
        ('{"seed": 1.5}', "seed is '1.5' (float)"),
        ('{"seed": true}', "seed is 'True' (bool)"),
        ('{"seed": -1}', "seed is '-1' (int)"),
        ('{"seed": [1]}', "seed is '[1]' (list)"),
        ('{"learning_rate": NaN}', "learning_rate is 'nan'"),
        ('{"train_seconds": Infinity}', "train_seconds is 'inf'"),
        ('{"dataset": {"a": "b"}}', "dataset is"),
        ('{"versions": {"torch": 2}}', "versions is"),
        ('{"versions": "2.13"}', "versions is '2.13' (str); expected mapping"),
        ('{"corpus": "' + "x" * (1 << 20) + '"}', "expected at most 1048576"),
    ],
)
def test_file_of_a_stranger_is_refused_with_the_reason(tmp_path, content, said):
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / PROVENANCE_FILE).write_bytes(data)
    with pytest.raises(FormatError, match=re.escape(said)):
        Provenance.read(tmp_path)


def test_whole_number_is_a_learning_rate_too(tmp_path):
    (tmp_path / PROVENANCE_FILE).write_text(f'{{"learning_rate": 1, "seed": {10**400}}}')
    assert Provenance.read(tmp_path) == Provenance(learning_rate=1, seed=10**400)


def test_refused_write_names_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=PROVENANCE_FILE):
        FULL.write(tmp_path / "file")


# ---- collecting ----------------------------------------------------------------------------------


def test_collect_fills_in_versions_and_the_day():
    found = collect(seed=4)
    assert found.seed == 4
    assert found.versions["hf_connectome"] == hf_connectome.__version__
    assert found.versions.keys() == {"python", "hf_connectome", "torch", "transformers", "peft"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found.created)
    assert found.dataset is found.command is found.hardware is None


def test_collect_keeps_what_it_is_given():
    kept = {name: value for name, value in vars(FULL).items() if name not in ("command",)}
    argv = ["recipes/evolve.py", "--config", "cpu", "--output_dir", "runs/cpu"]
    assert collect(argv=argv, **kept) == FULL


@pytest.mark.parametrize("dataset", ["python-stdlib", "/data/a", "books.txt.xz", "a/b/c", "~/x"])
def test_collect_keeps_no_dataset_that_is_not_on_the_hub(dataset):
    assert collect(dataset=dataset).dataset is None


def test_collect_names_the_corpus_that_every_machine_has():
    found = collect(dataset="python-stdlib", corpus="train: 1 document")
    assert found.corpus == "python-stdlib; train: 1 document"
    assert collect(dataset="python-stdlib").corpus == "python-stdlib"


def test_collect_keeps_no_dataset_that_is_a_folder_here(tmp_path, monkeypatch):
    (tmp_path / "data" / "texts").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert collect(dataset="data/texts").dataset is None
    assert collect(dataset="data/other").dataset == "data/other"


def test_collect_takes_paths_out_of_every_text():
    found = collect(corpus="from /data/x.txt", hardware="CPU ~/me", precision="float32")
    assert (found.corpus, found.hardware, found.precision) == (
        "from <path>",
        "CPU <path>",
        "float32",
    )


def test_versions_and_hardware_are_this_machines():
    assert versions()["python"] == ".".join(map(str, sys.version_info[:3]))
    assert hardware() is None or "\n" not in hardware()


# ---- ids -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["gpt2", "org/name", "a1/b.c_d-e", "HuggingFaceFW/fineweb-edu"])
def test_hub_id_is_kept(text):
    assert hub_id(text) == text


@pytest.mark.parametrize(
    "text",
    [None, "", "a/b/c", "a--b", "a..b", "a b", "-a", "a-", "a.git", "é", "x" * 97, "a\n", "./a"],
)
def test_text_that_cannot_be_a_hub_id_is_none(text):
    assert hub_id(text) is None
    assert text is None or not can_be_hub_id(text)


# ---- paths ---------------------------------------------------------------------------------------

words = st.text(st.characters(categories=("L", "N")), min_size=1, max_size=8)
names = words.map(lambda word: f"secret{word}")
POSIX = ("/", "//", "~/", "~me/", "./", "../", "../../", "file://", "file:///", "FILE:/", "/m/")
WINDOWS = ("C:\\", "d:/", "\\\\host\\", ".\\", "..\\", "C:\\Program Files\\", "/my disk/")
starts = st.sampled_from((*POSIX, *WINDOWS))
paths = st.builds(lambda start, *rest: start + "/".join(rest), starts, names, names)
before = st.sampled_from(
    ["", " ", "in ", "a=", "(", "'", '"', "x:", "1,", "<", "|", "see https://a.b "]
)
after = st.sampled_from(["", " ", ", and more", "'", '"', ")", ".", "\n", " /other"])


@given(before, paths, after)
def test_no_local_path_survives(left, path, right):
    text = left + path + right
    assert is_local_path(text)
    assert "secret" not in without_paths(text)
    assert without_paths(without_paths(text)) == without_paths(text)


@given(st.lists(st.tuples(before, paths, after), max_size=4))
def test_no_local_path_survives_in_a_command(parts):
    argv = ["/home/secret/evolve.py"]
    for left, path, right in parts:
        argv += ["--dataset", left + path + right, f"--x={left}{path}{right}", left + path]
    assert "secret" not in public_command(argv)


@pytest.mark.parametrize(
    "text",
    [
        "712,320 tokens; sha256 936f90148752f5d1",
        "3.5 tokens/s and/or 1/2",
        "https://huggingface.co/org/name/tree/main, hf://datasets/a/b",
        "org/name",
        "recipes/evolve.py --output_dir <output_dir>",
        "a.b..c 1.5e-3",
        "",
    ],
)
def test_text_without_a_path_stays(text):
    assert without_paths(text) == text
    assert not is_local_path(text)


def test_every_line_is_cut_for_itself():
    assert without_paths("a /b c\nd ~/e\nf") == "a <path>\nd <path>\nf"


# ---- commands ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["/a/recipes/evolve.py"], "recipes/evolve.py"),
        (["C:\\a\\recipes\\evolve.py"], "recipes/evolve.py"),
        (["/a/my_script.py", "-x"], "my_script.py -x"),
        (["e.py", "--config", "cpu", "--seed", "-1"], "e.py --config cpu --seed -1"),
        (["e.py", "--output-dir", "runs/a"], "e.py --output-dir <output_dir>"),
        (["e.py", "--dataset=/a/b.txt"], "e.py --dataset=<dataset>"),
        (["e.py", "--dataset", "a.txt.xz"], "e.py --dataset <dataset>"),
        (["e.py", "--dataset", "a/b/c"], "e.py --dataset <dataset>"),
        (["e.py", "--dataset", "org/name"], "e.py --dataset org/name"),
        (["e.py", "/a/config.yaml"], "e.py <path>"),
        (["e.py", "--overrides", "n_layer=4,n_head=2"], "e.py --overrides n_layer=4,n_head=2"),
        (["e.py", "--title", "two words"], "e.py --title 'two words'"),
        (["e.py", "--hub_token", "hf_" + "a" * 30], "e.py --hub_token <hub_token>"),
        (["e.py", "--token=anything"], "e.py --token=<token>"),
        (["e.py", "--note", "hf_" + "a" * 30], "e.py --note <note>"),
        (["e.py", "--tokenizer", "gpt2"], "e.py --tokenizer gpt2"),
        (["e.py", "--max_train_tokens", "5"], "e.py --max_train_tokens 5"),
        (["e.py", "x" * 5000], "e.py " + "x" * 5000),
        (["e.py", "a\0b"], "e.py 'a\0b'"),
    ],
)  # fmt: skip
def test_command_shows_no_place_and_no_secret(argv, shown):
    assert public_command(argv) == shown


def test_command_hides_what_lies_here(tmp_path, monkeypatch):
    (tmp_path / "corpora").mkdir()
    monkeypatch.chdir(tmp_path)
    assert public_command(["e.py", "--dataset", "corpora"]) == "e.py --dataset <dataset>"
    assert public_command(["e.py", "--dataset", "other"]) == "e.py --dataset other"


@given(st.lists(st.text(st.characters(categories=("L", "N")), min_size=1), max_size=4))
def test_command_without_paths_is_the_shells_own(words):
    words = [word for word in words if not Path(word).exists()]
    assert shlex.split(public_command(["e.py", *words])) == ["e.py", *words]
