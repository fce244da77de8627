"""The cards line by line, as the Hub reads them, and against configs of strangers."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from tiny import drawn, tiny_model

import hf_connectome
from hf_connectome.cards import (
    CARD_FILE,
    FIGURE_FILE,
    Results,
    card,
    checkpoint_card,
    eval_results,
    read_results,
    write_card,
    write_checkpoint_card,
)
from hf_connectome.cards.facts import floor_bits, inherited_bits
from hf_connectome.config import ConnectomeConfig
from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.data import load_tokenizer, tokenizer_digest
from hf_connectome.errors import ConfigError, FormatError, StorageError
from hf_connectome.evaluation.arms import ArmResult, as_json, markdown_table, summarise
from hf_connectome.modeling import ConnectomeModel
from hf_connectome.provenance import Provenance, is_local_path
from hf_connectome.storage import CONNECTOME_FOLDER, WEIGHTS_FILE, write

ROOT = Path(__file__).parents[1]
GENERATIONS = (
    {
        "generation": 0,
        "density": 1.0,
        "num_survivors": 25184,
        "digest": "0123456789abcdef" * 4,
        "eval_loss": 4.5,
        "prune_fraction": 0.5,
        "criterion": "magnitude",
        "selection": "per-tensor",
        "reset": "sign_constant",
    },
    {
        "generation": 1,
        "density": 0.5,
        "num_survivors": 12592,
        "digest": "fedcba9876543210" * 4,
        "prune_fraction": 0.5,
        "criterion": "magnitude",
        "selection": "per-tensor",
        "reset": "sign_constant",
    },
)
PROVENANCE = Provenance(
    dataset="org/books",
    corpus="train: 131 documents, 712,320 tokens",
    learning_rate=0.003,
    lr_schedule="cosine",
    hardware="AMD EPYC",
    train_seconds=5400,
    num_processes=2,
    versions={"torch": "2.13.0", "python": "3.11.7"},
    command="recipes/evolve.py --config cpu --output_dir <output_dir>",
    created="2025-04-29",
)


def evolved(**config):
    """A connectome of the tiny GPT-2 at a quarter of the density, with a lineage."""
    settings = {
        "reset": "sign_constant",
        "generation": 2,
        "lineage": [dict(row) for row in GENERATIONS],
        "tokenizer": "org/tokenizer",
        "tokenizer_digest": "e0d3274f" * 8,
    }
    return drawn(tiny_model("gpt2"), **(settings | config))


def small(**config):
    """A connectome of one parameter: enough for all that the config says."""
    mask = torch.tensor([[True, False], [False, True]])
    weight = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    return Connectome(
        {"h.0.w": SignedMask.pack(mask, weight)},
        config=ConnectomeConfig(**config) if config else None,
    )


def run(arm, seed, final, **changes):
    known = {"num_survivors": 2, "num_weights": 4, "bits_inherited": 3, "seconds": 1.5}
    steps, losses = [0, 10, 20], [7.0, 6.0 - seed / 10, final + seed / 10]
    return ArmResult(arm=arm, seed=seed, steps=steps, losses=losses, **(known | changes))


def runs_of(**changes):
    """Four seeds of three arms; by default those of :func:`small`."""
    finals = {"connectome": 4.0, "random": 5.5, "dense": 5.0}
    return tuple(run(a, seed, f, **changes) for a, f in finals.items() for seed in range(4))


RUNS = runs_of()
RUNS_OF_EVOLVED = runs_of(num_survivors=7176, num_weights=28704)


def head_of(text):
    return ModelCard(text).data.to_dict()


# ---- the whole card ------------------------------------------------------------------------------


def test_card_of_an_evolved_connectome_says_all_of_this_and_nothing_else(tmp_path):
    connectome = evolved()
    write(connectome, tmp_path)
    results = Results(RUNS_OF_EVOLVED, corpus="eval: 32 documents", learning_rate=0.001)
    write_card(
        tmp_path,
        connectome,
        repo_id="org/child",
        revision="generation-2",
        tags={"generation-1", "v1", "generation-x"},
        provenance=PROVENANCE,
        results=results,
        license="apache-2.0",
        base_model="org/parent",
        parent="org/grandparent",
    )
    text = (tmp_path / CARD_FILE).read_text(encoding="utf-8")
    lines = text.splitlines()
    wanted = (ROOT / "tests" / "card_pattern.txt").read_text(encoding="utf-8").splitlines()
    odd = [pair for pair in zip(lines, wanted, strict=False) if not re.fullmatch(*pair[::-1])]
    assert odd == []
    assert len(lines) == len(wanted)
    assert markdown_table(summarise(RUNS_OF_EVOLVED)) in text
    assert f"| digest | `{connectome.digest}` |" in text


def test_head_is_what_the_hub_reads(tmp_path):
    text = card(evolved(), license="mit", base_model="org/parent", provenance=PROVENANCE)
    assert head_of(text) == {
        "library_name": "hf_connectome",
        "tags": ["connectome", "model-connectome", "sparse", "peft", "gpt2"],
        "license": "mit",
        "base_model": "org/parent",
        "datasets": ["org/books"],
    }
    ModelCard(text).save(tmp_path / "README.md")
    assert ModelCard.load(tmp_path / "README.md").data.to_dict() == head_of(text)
    assert "metrics" in head_of(card(evolved(), results=Results(RUNS_OF_EVOLVED)))


def test_citation_agrees_with_the_repositorys():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    text = card(small())
    paper = cff["preferred-citation"]
    assert paper["title"] in text
    assert cff["title"] in text
    assert paper["url"] in text
    assert (
        " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"]) in text
    )
    assert cff["authors"][0]["name"] in text
    assert f"{{{hf_connectome.__version__}}}" in text


# ---- what is not known, and other kinds ----------------------------------------------------------


def test_card_without_anything_known_invents_nothing():
    text = card(small())
    assert head_of(text) == {
        "library_name": "hf_connectome",
        "tags": ["connectome", "model-connectome", "sparse", "peft"],
    }
    for said in (
        "# A connectome\n",
        "a model whose architecture is not recorded",
        "How it came about is not recorded.",
        "| architecture | not recorded |",
        "\nNot measured.\n",
        "Data, hours and hardware are not recorded.",
        "Versions: not recorded.",
        "The command is not recorded.",
        "Not measured: whether a child learns faster",
    ):
        assert said in text
    for unsaid in ("Lineage", "seed |", "tokenizer", "criterion", "file, codec", ".png", "None"):
        assert unsaid not in text
    assert "from_pretrained(host, " in text
    assert "seed=0" not in text  # nothing is recorded to build a fresh model from


def test_missing_tokenizer_is_said_where_there_are_embeddings():
    text = card(evolved(tokenizer=None, tokenizer_digest=None))
    assert "| tokenizer | not recorded |" in text


def test_mask_only_connectome_says_so():
    entry = SignedMask.pack(torch.tensor([[True, False]]))
    text = card(Connectome({"w": entry}))
    assert "(no signs)" in text
    assert "| signs | none: mask only |" in text
    assert "| bits inherited | 2 (mask 2), 1.000 a weight in scope |" in text
    assert "lacks signs" in text


def test_dense_mask_without_signs_has_no_floor():
    text = card(Connectome({"w": SignedMask.pack(torch.ones(2, 2, dtype=torch.bool))}),
                file_bytes={"plain": 100})  # fmt: skip
    assert "floor" not in text
    assert "| file, codec `plain` | 100 bytes, 0.08 times smaller than bf16 |" in text


def test_carried_scales_and_values_are_counted():
    connectome = drawn(tiny_model("gpt2"), carry=True)
    text = card(connectome)
    bits = inherited_bits(connectome)
    numbers = sum(value.numel() for value in connectome.values_carried.values())
    assert bits["value"] == 32 * numbers
    assert bits["scale"] == 16 * sum(entry.scale.size for entry in connectome.values())
    assert f"mask {bits['mask']:,}, sign {bits['sign']:,}, scale {bits['scale']:,}" in text
    assert "| magnitudes carried | for 10 parameters, float16 |" in text
    assert f"parameters out of scope, {numbers:,} numbers |" in text


def test_entropy_floor_is_the_formats():
    """docs/FORMAT.md, section 10: at a quarter 1.061 bits a weight, 15.08 times under bf16."""
    connectome = evolved()
    assert floor_bits(connectome) / connectome.num_weights == pytest.approx(1.0613, abs=1e-4)


@pytest.mark.parametrize("kind", ["llama", "t5", "vit", "mixtral", "bert"])
def test_card_of_every_host_names_its_modules(kind):
    connectome = drawn(tiny_model(kind))
    text = card(connectome)
    assert f"`{connectome.config.architecture}`" in text
    assert "layers 2" in text
    assert connectome.config.base_config["model_type"] in head_of(text)["tags"]


def test_long_lineage_and_many_modules_are_cut_and_said():
    rows = [{"generation": g, "density": 0.5} for g in range(70)]
    text = card(small(lineage=rows, generation=70))
    assert "The first 6 generations are not listed." in text
    assert "\n| 5 |" not in text
    assert "\n| 6 |" in text
    entry = small()["h.0.w"]
    many = card(Connectome({f"h.0.w{i}": entry for i in range(70)}))
    assert "6 further modules are not listed." in many


def test_origin_is_named_where_it_is_an_id():
    text = card(small(origin="org/x@" + "a" * 40))
    assert f"| fetched from | [org/x](https://huggingface.co/org/x) at `{'a' * 40}` |" in text
    assert "fetched from" not in card(small(origin="/data/x@main"))


def test_settings_that_changed_are_all_listed():
    rows = [{"generation": g, "prune_fraction": f} for g, f in enumerate((0.1, 0.2, 0.3, 0.4))]
    assert "| prune_fraction | 0.1, 0.2, 0.3 and 1 more |" in card(small(lineage=rows))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({}, "one generation of training and pruning, after Kotar & Tuckute 2025"),
        ({"outer_loop": "iht"}, "one generation of iterative hard thresholding"),
        ({"outer_loop": "search"}, "one generation of evolutionary search"),
        ({"outer_loop": ["<b>"]}, "one generation of another outer loop (<code>"),
    ],
)
def test_the_loop_that_found_it_is_named(row, words):
    text = card(small(lineage=[{"generation": 0, **row}], generation=1))
    assert words in text
    assert "<b>" not in text


def test_plug_in_criterion_that_is_not_installed_is_named_without_a_source():
    text = card(small(lineage=[{"generation": 0, "criterion": "somebodys"}]))
    assert "| criterion | `somebodys` |" in text
    assert "| criterion | source |" not in text


@pytest.mark.parametrize(
    "options",
    [
        {"repo_id": "/data/x"},
        {"repo_id": 'org/x", seed=0) #'},
        {"base_model": "runs/cpu/checkpoint-5"},
        {"parent": "org/x\n# title"},
        {"tokenizer_repo": "~/tokenizer"},
        {"revision": 'a"b'},
        {"license": "mit\nbase_model: x"},
        {"figure": "../x.png"},
        {"file_bytes": {"plain": 0}},
        {"results": Results(RUNS, digest="f" * 64)},
    ],
)
def test_argument_that_cannot_be_is_refused_before_anything_is_written(tmp_path, options):
    with pytest.raises(ConfigError) as caught:
        card(small(), **options)
    assert "/data" not in str(caught.value)
    if "figure" not in options:
        with pytest.raises(ConfigError):
            write_card(tmp_path, small(), **options)
        assert list(tmp_path.iterdir()) == []


# ---- strangers -----------------------------------------------------------------------------------

SECRET = "secretfolder"
STARTS = ("/data/", "~/", "./", "../", "C:\\", "file:///", "\\\\host\\", "a b /x/my texts/")
paths = st.sampled_from(STARTS).map(lambda start: f"{start}{SECRET}")
ODD = (
    "---", "\n---\nlicense: x\n---", "</code><script>alert(1)</script>", "a|b||c", "`" * 9,
    "```\n# title", "x" * 100_000, "[a](javascript:alert(1))", "![x](http://a.b/c.png)", "<!--",
    "&lt;script&gt;", "www.a.b", "https://a.b", "\\|", "\\\\|", "%s {}", "| --- |", "<i>", "*a*",
)  # fmt: skip
signs = st.sampled_from("|`\\\n\r\t<>&*_[](){}#-+!~$'\":; \0\u202e\u2028é\ud800ab1")
nasty = st.text(signs, max_size=40) | st.sampled_from(ODD)
values = st.one_of(nasty, st.integers(), st.floats(), st.none(), st.booleans(), st.lists(nasty))


@st.composite
def configs(draw, text):
    row = st.fixed_dictionaries({}, optional=dict.fromkeys(GENERATIONS[0], text | values))
    return {
        "architecture": draw(text),
        "base_config": draw(st.dictionaries(st.sampled_from(["model_type", "n_layer"]), text)),
        "base_fingerprint": draw(text),
        "tokenizer": draw(text),
        "tokenizer_digest": draw(text),
        "origin": draw(text),
        "target_modules": draw(text | st.lists(text, max_size=3)),
        "lineage": draw(st.lists(row, min_size=1, max_size=3)),
    }


@st.composite
def provenances(draw, text):
    texts = ("corpus", "corpus_digest", "optimizer", "hardware", "command", "dataset", "created")
    return Provenance(
        **{name: draw(text) for name in texts},
        versions=draw(st.dictionaries(text, text, max_size=2)),
    )


@given(configs(paths), provenances(paths), paths)
def test_no_local_path_gets_into_a_card(config, provenance, corpus):
    config["base_config"] |= {"_name_or_path": f"/data/{SECRET}"}
    connectome = small(**config)
    text = card(connectome, provenance=provenance, results=Results(RUNS, corpus=corpus))
    assert SECRET not in text
    assert SECRET not in checkpoint_card(connectome, provenance=provenance)


def outline(text):
    """What a Markdown reader makes of a card: blocks and the columns of every row."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text.split("---\n", 2)[2])
    blocks, columns = [], []
    for token in tokens:
        if token.type == "heading_open":
            blocks.append(tokens[tokens.index(token) + 1].content)
        if token.type == "tr_open":
            columns.append(0)
        columns[-1:] = [columns[-1] + 1] if token.type in ("td_open", "th_open") else columns[-1:]
        assert token.type != "html_block", token.content
        for child in token.children or ():
            assert child.type != "html_inline" or child.content in ("<code>", "</code>")
            assert child.type != "link_open" or child.attrs["href"].startswith("https://")
    return blocks, columns


@given(configs(nasty), provenances(nasty), nasty)
def test_text_of_a_stranger_breaks_no_card(config, provenance, corpus):
    text = card(small(**config), provenance=provenance, results=Results(RUNS, corpus=corpus))
    head = head_of(text)
    assert set(head) <= {"library_name", "tags", "metrics", "datasets"}
    assert head["library_name"] == "hf_connectome"
    assert len(head["tags"]) <= 5
    blocks, columns = outline(text)
    assert blocks[0] == "A connectome"
    assert blocks[1:] == [
        "How to load it", "Facts", "Lineage", "Density", "Results",
        "What it is not for, and what was not measured", "Training", "How to reproduce it",
        "Citation",
    ]  # fmt: skip
    assert set(columns) <= {2, 3, 5, 7, 8}
    assert all(not c or c.isprintable() for line in text.split("\n") for c in line)
    assert len(text) < 20_000
    assert "<script" not in text
    text.encode()


def is_shown_whole(text):
    return text == " ".join(text.split()) != "" and text.isprintable() and not is_local_path(text)


@given(nasty.filter(lambda text: len(text) < 100 and is_shown_whole(text)))
def test_strange_name_is_shown_as_it_is(name):
    text = card(small(architecture=name))
    tokens = MarkdownIt("commonmark").enable("table").parse(text.split("---\n", 2)[2])
    kinds = ("text", "code_inline", "text_special")
    cells = [
        "".join(child.content for child in token.children if child.type in kinds)
        for token in tokens
        if token.type == "inline"
    ]
    assert name in cells


# ---- results -------------------------------------------------------------------------------------


def saved(folder, content, **settings):
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(content))
    if settings:
        (folder / "run.json").write_text(json.dumps(settings))
    return folder


def test_results_are_read_as_they_were_written(tmp_path):
    settings = {"connectome": "a" * 64, "corpus": "eval: 1 document", "learning_rate": 0.5}
    folder = saved(tmp_path, as_json(RUNS), **settings)
    found = read_results(folder, dataset="org/held-out")
    assert found == Results(RUNS, "a" * 64, "eval: 1 document", 0.5, "org/held-out")
    assert read_results(folder / "results.json", dataset="/data/x").dataset is None
    assert markdown_table(summarise(found.runs)) == markdown_table(summarise(RUNS))


def test_results_without_their_settings_are_read(tmp_path):
    assert read_results(saved(tmp_path, as_json(RUNS))) == Results(RUNS)


@pytest.mark.parametrize(
    "change",
    [
        {"arm": "a|b"}, {"arm": 5}, {"arm": ""}, {"seed": "0"}, {"seed": True}, {"steps": []},
        {"steps": [0, 1]}, {"steps": [0, 0, 1]}, {"steps": [2, 1, 0]}, {"steps": [0, 0.1, 0.2]},
        {"losses": [1, 2, "3"]}, {"losses": [1, 2, float("nan")]}, {"losses": None},
        {"num_weights": 0}, {"num_survivors": 10**400}, {"seconds": None}, {"bits_inherited": []},
    ],
)  # fmt: skip
def test_result_that_was_never_measured_is_refused(tmp_path, change):
    content = as_json(RUNS)
    content["runs"][1] |= change
    with pytest.raises(FormatError, match=re.escape("results.json")):
        read_results(saved(tmp_path, content))


@pytest.mark.parametrize("content", [[], {}, {"runs": []}, {"runs": {}}, {"runs": [5]}])
def test_file_without_runs_is_refused(tmp_path, content):
    with pytest.raises(FormatError, match=re.escape("results.json")):
        read_results(saved(tmp_path, content))


def test_missing_results_name_the_way_out(tmp_path):
    with pytest.raises(FormatError, match=re.escape("recipes/inherit.py")):
        read_results(tmp_path)


def test_results_that_lack_controls_say_so():
    text = card(small(), results=Results(RUNS[:2]))
    assert "- Not measured: the control *random*" in text
    assert "- Not measured: the control *dense*" in text
    assert "- Of an arm only 2 children were trained" in text
    assert "control" not in card(small(), results=Results(RUNS))


def test_scores_on_a_dataset_of_the_hub_are_entries_of_the_hub():
    results = Results(RUNS, dataset="org/held-out")
    ((path, text),) = eval_results(results, source="https://huggingface.co/org/x").items()
    assert path == ".eval_results/org--held-out.yaml"
    (entry,) = parse_eval_result_entries(yaml.safe_load(text))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("org/held-out", "held-out-loss", 4.15)
    assert entry.source_url == "https://huggingface.co/org/x"
    assert "mean of 4 fresh models" in entry.notes


@pytest.mark.parametrize(
    "results", [Results(RUNS), Results(RUNS[4:], dataset="org/x")], ids=["here", "no connectome"]
)
def test_other_scores_are_no_entries(results):
    assert eval_results(results) == {}


# ---- files ---------------------------------------------------------------------------------------


def test_card_is_written_with_its_figure_and_scores(tmp_path):
    connectome = small(lineage=[{"generation": 0, "density": 1.0}], generation=1)
    write(connectome, tmp_path)
    PROVENANCE.write(tmp_path)
    results = Results(RUNS, digest=connectome.digest, dataset="org/held-out")
    written = write_card(tmp_path, connectome, results=results, repo_id="org/x")
    names = {file.relative_to(tmp_path).as_posix() for file in written}
    assert names == {CARD_FILE, FIGURE_FILE, ".eval_results/org--held-out.yaml"}
    assert all(file.stat().st_size for file in written)
    text = (tmp_path / CARD_FILE).read_text(encoding="utf-8")
    size = (tmp_path / WEIGHTS_FILE).stat().st_size
    assert f"| file, codec `plain` | {size:,} bytes" in text
    assert "AMD EPYC" in text
    assert f"]({FIGURE_FILE})" in text


def test_compressed_file_is_named_by_its_codec(tmp_path):
    connectome = evolved()
    entry = SignedMask.pack(torch.arange(4096).reshape(64, 64) < 2048, torch.ones(64, 64))
    write(Connectome({"w": entry}, config=connectome.config), tmp_path, codec="zstd")
    write_card(tmp_path, Connectome({"w": entry}, config=connectome.config))
    assert "| file, codec `zstd` |" in (tmp_path / CARD_FILE).read_text(encoding="utf-8")


def test_card_without_matplotlib_has_no_picture(tmp_path, monkeypatch):
    (tmp_path / FIGURE_FILE).write_bytes(b"of an earlier connectome")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert write_card(tmp_path, small()) == [tmp_path / CARD_FILE]
    assert ".png" not in (tmp_path / CARD_FILE).read_text(encoding="utf-8")
    assert not (tmp_path / FIGURE_FILE).exists()


def test_card_beside_anothers_file_is_refused(tmp_path):
    write(evolved(), tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="holds the connectome"):
        write_card(tmp_path, small())
    (tmp_path / WEIGHTS_FILE).write_bytes(b"damaged")
    with pytest.raises(FormatError, match=WEIGHTS_FILE):
        write_card(tmp_path, small())
    assert sorted(tmp_path.iterdir()) == before


def test_refused_write_names_the_file(tmp_path):
    (tmp_path / "folder").write_text("")
    with pytest.raises(StorageError, match="folder"):
        write_card(tmp_path / "folder", small())


def test_snippets_of_the_card_run(tmp_path):
    connectome = evolved()
    write(connectome, tmp_path)
    write_card(tmp_path, connectome)
    text = (tmp_path / CARD_FILE).read_text(encoding="utf-8")
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        scope = {"host": tiny_model("gpt2")}
        exec(code.replace("this_repository", str(tmp_path)), scope)
        weight = scope["model"].get_base_model().transformer.h[0].attn.c_attn.weight
        assert weight.shape == (32, 96)


# ---- a trained checkpoint ------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    """What the trainer leaves: an ordinary checkpoint with the connectome in a subfolder."""
    model = tiny_model("gpt2")
    connectome = evolved()
    connectome.to(model)
    model.save_pretrained(tmp_path)
    write(connectome, tmp_path / CONNECTOME_FOLDER)
    return tmp_path


def test_checkpoint_card_names_parent_density_and_loss(checkpoint):
    (file,) = write_checkpoint_card(
        checkpoint,
        parent_repo="org/x",
        parent_revision="generation-2",
        repo_id="org/child",
        loss=3.14159,
        license="mit",
    )
    text = file.read_text(encoding="utf-8")
    assert head_of(text) == {
        "library_name": "transformers",
        "tags": ["model-connectome", "sparse", "gpt2"],
        "license": "mit",
        "base_model": "org/x",
        "pipeline_tag": "text-generation",
    }
    assert "# child\n" in text
    assert "A `GPT2LMHeadModel`, trained; of 28,704 weights in scope 7,176 exist (25 %)" in text
    assert "of [org/x](https://huggingface.co/org/x) at `generation-2`" in text
    assert "\n## Results\n\nHeld-out loss: 3.142 nats a token.\n" in text
    assert "bits inherited" not in text


def test_checkpoint_card_without_anything_known_invents_nothing():
    text = checkpoint_card(small())
    assert head_of(text) == {"library_name": "transformers", "tags": ["model-connectome", "sparse"]}
    assert "A model whose architecture is not recorded, trained;" in text
    assert "\n## Results\n\nNot measured.\n" in text
    assert "from transformers import AutoModel\n" in text


def test_snippets_of_the_checkpoint_card_run(checkpoint):
    write_checkpoint_card(checkpoint)
    text = (checkpoint / CARD_FILE).read_text(encoding="utf-8")
    scope = {}
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(code.replace("this_repository", str(checkpoint)), scope)
    dead = ~scope["connectome"].mask("transformer.h.0.attn.c_attn.weight")
    weight = scope["model"].transformer.h[0].attn.c_attn.weight
    assert bool(dead.any())
    assert not bool(weight.detach()[dead].any())


def test_checkpoint_without_a_connectome_is_refused(tmp_path):
    with pytest.raises(FormatError, match=CONNECTOME_FOLDER):
        write_checkpoint_card(tmp_path)


def test_checkpoint_parent_that_is_a_folder_is_refused():
    with pytest.raises(ConfigError, match="parent_repo is a local path"):
        checkpoint_card(small(), parent_repo="/data/x")


# ---- the example ---------------------------------------------------------------------------------


def test_example_card_is_what_its_page_writes(tmp_path, monkeypatch):
    for name in ("model_cards", "docs/results/python-stdlib"):
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "model_cards" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(code, {})
    written = (tmp_path / "model_cards" / "example" / CARD_FILE).read_text(encoding="utf-8")
    kept = (ROOT / "model_cards" / "example" / CARD_FILE).read_text(encoding="utf-8")
    assert written == kept, "run the code of model_cards/README.md"
    assert (ROOT / "model_cards" / "example" / FIGURE_FILE).is_file()


NAMES = [f.name for f in fields(Provenance) if f.name not in ("seed", "dataset", "versions")]


@pytest.mark.parametrize("name", NAMES)  # the seed is among the facts of the connectome
def test_every_fact_of_a_run_reaches_the_card(name):
    is_number = name.startswith(("num_", "tokens_", "block_", "train_", "learning_"))
    text = card(small(), provenance=Provenance(**{name: 7777 if is_number else "zebra"}))
    assert ("7,777" in text) == is_number
    assert ("zebra" in text) != is_number


def test_results_of_a_connectome_of_another_size_are_refused():
    with pytest.raises(ConfigError, match=r"of 7176 of 28704 weights, this one has 2 of 4"):
        card(small(), results=Results(RUNS_OF_EVOLVED))


def test_connectome_in_the_repository_loads_with_its_tokenizer_and_its_results():
    folder = ROOT / "model_cards" / "openstax-small"
    model = ConnectomeModel.from_pretrained(folder, seed=0)
    results = read_results(ROOT / "docs" / "results" / "openstax-ladder" / "results.json")
    arms = {run.arm: run for run in results.runs}
    assert arms["connectome"].num_survivors == model.connectome.num_survivors == 45_096
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer_digest(tokenizer) == model.connectome.config.tokenizer_digest


def test_arms_from_a_local_folder_stay_out_of_a_card(tmp_path):
    runs = [
        {"arm": arm, "seed": 0, "steps": [0, 1], "losses": [2.0, 1.0], "num_survivors": 1,
         "num_weights": 2, "bits_inherited": 1.0, "seconds": 1.0}
        for arm in ("connectome", "connectome@generation-1", "connectome@runs/mine")
    ]  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps({"runs": runs}))
    found = [run.arm for run in read_results(tmp_path).runs]
    assert found == ["connectome", "connectome@generation-1"]
