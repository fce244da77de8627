"""What the command line prints, with which exit code, and that the library's results are in it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest
import torch
from hub.client import hf
from tiny import KINDS, drawn, tiny_model

from hf_connectome import __version__, storage
from hf_connectome.cli import app
from hf_connectome.cli.output import Code, Result, Table
from hf_connectome.cli.trial import Trial, try_out
from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.hosts import wire
from hf_connectome.modeling import ConnectomeModel
from hf_connectome.operations import Lines, lesion, union
from hf_connectome.selection import keep

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "CLI.md"
COMMANDS = [
    *("show", "verify", "diff", "convert", "wire", "combine", "lesion", "lineage", "load-test"),
    *("speed", "push", "pull", "search"),
]


class Ran:
    """What a command left: exit code, stdout, stderr."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    @property
    def json(self):
        return json.loads(self.out)

    @property
    def rows(self):
        return [re.split(r"\s{2,}", line.strip()) for line in self.out.splitlines() if line.strip()]


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments):
        with pytest.raises(SystemExit) as left:
            app([str(argument) for argument in arguments], prog_name="hf-connectome")
        return Ran(left.value.code, *capsys.readouterr())

    return call


def program(*arguments, **environment):
    """Run the real program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "hf_connectome.cli", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Store a connectome as ``c`` in the working directory."""
    monkeypatch.chdir(tmp_path)
    storage.write(drawn(tiny_model("gpt2"), generation=6, reset="sign_constant"), "c")
    return Path("c")


def stored(name, kind="gpt2", **options):
    connectome = drawn(tiny_model(kind), **options)
    storage.write(connectome, name)
    return connectome


# ---- the program ---------------------------------------------------------------------------------


def test_help_names_every_command_whole_and_every_exit_code(run):
    ran = run("--help")
    assert ran.code == 0
    listed = re.findall(r"^  ([a-z-]+)  +(\S.*)$", ran.out.split("Commands:")[1], re.MULTILINE)
    assert [name for name, _ in listed] == COMMANDS
    assert not any(summary.endswith("...") for _, summary in listed)
    codes = re.findall(r"^ +(\d+)  ", ran.out.split("Exit codes:")[1], re.MULTILINE)
    assert [int(code) for code in codes] == [int(code) for code in Code]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_an_example_and_says_what_each_option_is(run, command):
    ran = run(command, "--help")
    assert ran.code == 0
    assert f"For example:\n    hf-connectome {command} " in ran.out
    assert "--json" in ran.out
    options = re.findall(r"^  (--[^\n]*)\n( {4,}\S.*)?", ran.out, re.MULTILINE)
    assert options
    for line, following in options:
        assert re.search(r"\s{2,}\S", line) or following, line


def test_version_is_the_packages(run):
    assert run("--version").out == f"hf-connectome {__version__}\n"


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from hf_connectome.cli import app\n"
        "try:\n    app(['show', '--help'], prog_name='x')\n"
        "except SystemExit:\n    pass\n"
        # Not rich: typer's older releases load it themselves.
        "heavy = {'torch', 'transformers', 'peft', 'huggingface_hub', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == "[]\n"
    assert "Usage: x show" in done.stdout


def test_unknown_command_or_option_is_a_usage_error_with_the_nearest(run):
    ran = run("shw")
    assert (ran.code, ran.out) == (2, "")
    assert "Did you mean 'show'?" in ran.err
    ran = run("show", "x", "--jsn")
    assert (ran.code, ran.out) == (2, "")
    assert "--json" in ran.err


def test_interruption_leaves_with_its_code_and_no_traceback(run, folder, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "read", interrupted)
    ran = run("show", folder)
    assert (ran.code, ran.out, ran.err) == (130, "", "interrupted\n")


@pytest.mark.parametrize("command", ["show", "verify", "convert", "load-test", "diff"])
def test_refusal_is_one_line_on_stderr_and_code_1(run, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    ran = run(command, "empty", *(["empty"] if command in ("convert", "diff") else []))
    assert (ran.code, ran.out) == (1, "")
    assert re.fullmatch(r"error: empty holds no connectome[^\n]*\n", ran.err)


def test_program_prints_one_document_on_stdout_and_leaves_with_the_code(tmp_path):
    storage.write(drawn(tiny_model("gpt2")), tmp_path)
    flip(tmp_path / storage.WEIGHTS_FILE)
    done = program("verify", tmp_path, "--json")
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["sound"] is False


def test_program_refuses_without_a_traceback():
    done = program("show", "nowhere/at/all", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"error: [^\n]*\n", done.stderr)


def test_what_a_library_prints_does_not_reach_stdout(run, folder, monkeypatch):
    real = storage.read

    def chatty(*arguments, **options):
        sys.stdout.write("by the way\n")
        return real(*arguments, **options)

    monkeypatch.setattr(storage, "read", chatty)
    ran = run("show", folder, "--json")
    assert ran.json["path"] == "c"
    assert "by the way" in ran.err


# ---- output --------------------------------------------------------------------------------------


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}, {"COLUMNS": "20"}])
def test_nothing_is_cut_however_narrow_it_is(run, folder, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ran = run("show", folder, "--all")
    assert storage.read("c").digest in ran.out
    assert "transformer.h.0.attn.c_attn.weight" in ran.out
    assert "…" not in ran.out


def test_a_pipe_gets_no_colours_and_no_spaces_at_the_end(run, folder):
    out = run("show", folder).out
    assert "\x1b" not in out
    assert all(line == line.rstrip() for line in out.splitlines())


def test_lines_fit_a_terminal_of_80_columns(run, folder):
    stored("d", seed=1)
    for arguments in (["show", "c"], ["verify", "c"], ["diff", "c", "d"], ["load-test", "c"]):
        assert max(map(len, run(*arguments).out.splitlines())) <= 80, arguments


def test_numbers_that_json_has_not_become_null(capsys):
    Result({"loss": [float("nan"), {"x": float("inf")}, 1.5]}, [], True).print(sys.stdout)
    assert json.loads(capsys.readouterr().out) == {"loss": [None, {"x": None}, 1.5]}


def test_text_from_strangers_is_printed_as_it_is(capsys):
    table = Table(("name",), [("[bold red]x[/] :smile:",)])
    Result({}, [table], False).print(sys.stdout)
    assert "[bold red]x[/] :smile:" in capsys.readouterr().out


def test_control_sequences_from_strangers_do_not_reach_the_terminal(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored("c", tokenizer="me/\x1b]0;owned\x07\ud800")
    out = run("show", "c").out
    assert "me/\\x1b]0;owned\\x07\\ud800" in out
    assert run("show", "c", "--json").json["tokenizer"] == "me/\x1b]0;owned\x07\ud800"
    edit(tmp_path / "c" / storage.CONFIG_FILE, architecture="\x1b[2J")
    assert "\\x1b[2J" in repr(run("show", "c").err).replace("\\\\", "\\")
    assert "\x1b" not in run("show", "c").err


# ---- show ----------------------------------------------------------------------------------------


def test_show_prints_what_a_connectome_is(run, folder):
    connectome = storage.read(folder)
    num_bytes = (folder / storage.WEIGHTS_FILE).stat().st_size
    bits = 8 * num_bytes / 28704
    floor = 28704 * 1.0612781  # H(1/4) + 1/4 bits a weight
    assert run("show", folder).out.splitlines() == [
        "path          c",
        "architecture  GPT2LMHeadModel",
        "generation    6",
        "survivors     7,176 of 28,704 weights in 10 parameters",
        "density       0.2500",
        f"digest        {connectome.digest}",
        f"fingerprint   {connectome.config.base_fingerprint}",
        "reset         sign_constant, magnitude 0.02",
        f"file          {num_bytes:,} bytes, codec plain, {bits:.3f} bits a weight",
        f"              {16 / bits:.1f} times smaller than bfloat16, "
        f"{8 * num_bytes / floor:.3f} of the i.i.d. floor",
        "",
        "module           layers  weights  survivors  density by layer",
        "transformer.wpe       1    1,024        256  0.2500",
        "transformer.wte       1    3,104        776  0.2500",
        "attn.c_attn           2    6,144      1,536  0.2500",
        "attn.c_proj           2    2,048        512  0.2500",
        "mlp.c_fc              2    8,192      2,048  0.2500",
        "mlp.c_proj            2    8,192      2,048  0.2500",
    ]


def test_show_gives_programs_every_parameter(run, folder):
    connectome, document = storage.read(folder), run("show", folder, "--json").json
    assert document["digest"] == connectome.digest
    assert document["density"] == connectome.density
    assert {row["name"]: row["density"] for row in document["parameters"]} == connectome.densities()
    assert document["file"]["codec"] == "plain"
    assert document["file"]["bytes"] == (folder / storage.WEIGHTS_FILE).stat().st_size


def test_show_prints_densities_of_all_layers_where_they_differ(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    connectome = drawn(tiny_model("gpt2"))
    name = "transformer.h.1.mlp.c_fc.weight"
    thin = keep(torch.rand(32, 128), connectome.mask(name), 512)
    entry = SignedMask.pack(thin, connectome.sign(name), orientation="in_out")
    storage.write(connectome.replace({**connectome, name: entry}), "c")
    assert ["mlp.c_fc", "2", "8,192", "1,536", ".25 .12"] in run("show", "c").rows


def test_show_prints_the_lineage_and_what_strangers_wrote_there(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lineage = [
        {
            "generation": 0,
            "density": 1.0,
            "num_survivors": 1000,
            "eval_loss": 4.5,
            "digest": "ab" * 32,
        },
        {"generation": "x" * 5, "density": None, "eval_loss": float("1e9"), "digest": 7},
    ]
    stored("c", lineage=lineage)
    rows = run("show", "c").rows
    assert ["0", "1.0000", "1,000", "4.5000", "ab" * 6] in rows
    assert ["xxxxx", "-", "-", "1000000000.0000", "7"] in rows
    assert run("show", "c", "--json").json["lineage"] == lineage


def test_show_tells_a_mask_without_signs_and_the_other_codec(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    connectome = drawn(tiny_model("gpt2"))
    bare = {
        name: SignedMask.pack(entry.mask(), orientation=entry.orientation)
        for name, entry in connectome.items()
    }
    storage.write(connectome.replace(bare), "c", codec="zstd")
    out = run("show", "c").out
    assert "weights in 10 parameters, mask only (no signs)\n" in out
    assert "codec zstd" in out


def test_show_draws_the_figure_it_is_asked_for(run, folder):
    assert run("show", folder, "--figure", "d.png").code == 0
    assert Path("d.png").read_bytes().startswith(b"\x89PNG")


def test_show_says_how_many_links_units_have(run, folder):
    name = "transformer.h.0.mlp.c_fc.weight"
    found = run("show", folder, "--degrees", "--json").json["degrees"]
    assert found.keys() == set(storage.read(folder))
    by_output = storage.read(folder).mask(name).sum(0)  # a Conv1D: 32 inputs, 128 outputs
    assert found[name]["into_outputs"]["num_units"] == 128
    assert found[name]["into_outputs"]["most"] == int(by_output.max())
    assert found[name]["from_inputs"]["mean"] == 32
    row = next(row for row in run("show", folder, "--degrees").rows if row[0] == name)
    assert (row[1], row[6]) == ("8.0", "32.0")
    assert "degrees" not in run("show", folder, "--json").json


# ---- wire ----------------------------------------------------------------------------------------

TINY = ("--model-overrides", "n_layer=1,n_embd=16,n_head=2,vocab_size=32,n_positions=8")


@pytest.mark.parametrize("wiring", ["brf:r=0.5,degree=uniform", "erk", "random:structure=2:4"])
def test_wired_connectome_loads_onto_a_fresh_model(run, tmp_path, wiring):
    out = tmp_path / "w"
    document = run("wire", out, "--wiring", wiring, *TINY, "--density", 0.5, "--json").json
    connectome = storage.read(out)
    assert (document["digest"], document["wiring"]) == (connectome.digest, wiring)
    assert document["num_survivors"] == connectome.num_weights // 2
    assert (connectome.config.density, connectome.config.seed) == (0.5, 0)
    model = ConnectomeModel.from_pretrained(out, seed=0)
    for name, parameter in model.get_base_model().named_parameters():
        if name in connectome:
            assert torch.equal(parameter, 0.02 * connectome.sign(name).float())
    again = run("wire", tmp_path / "again", "--wiring", wiring, *TINY, "--density", 0.5, "--json")
    assert again.json["digest"] == connectome.digest
    other = run("wire", tmp_path / "o", "--wiring", wiring, *TINY, "--seed", 1, "--density", 0.5)
    assert connectome.digest not in other.out


def test_wire_takes_patterns_scope_and_codec(run, tmp_path):
    options = ("--density-pattern", "wte=1", "--density-pattern", r"h\.0\.mlp\..*=0.125")
    call = run("wire", tmp_path, *TINY, *options, "--density", 0.5, "--codec", "zstd", "--json")
    densities = call.json["densities"]
    assert densities["transformer.wte.weight"] == 1.0
    assert densities["transformer.h.0.mlp.c_fc.weight"] == 0.125
    assert densities["transformer.wpe.weight"] == 0.5
    assert call.json["file"]["codec"] == "zstd"
    assert storage.read(tmp_path).config.density_pattern == {"wte": 1.0, r"h\.0\.mlp\..*": 0.125}
    body = run("wire", tmp_path / "body", *TINY, "--scope", "body", "--json").json
    assert not any("wte" in name or "wpe" in name for name in body["densities"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--wiring", "brff"), "unknown wiring 'brff'. Did you mean 'brf'"),
        (("--wiring", "csti"), "correlates input features and was given none"),
        (("--density", "1.5"), "density is 1.5; expected a number in (0, 1]"),
        (("--density", "1e-4"), "keeps at least one weight"),
        (("--density-pattern", "wte"), "--density-pattern is 'wte'; expected NAME=DENSITY"),
        (("--density-pattern", "=0.5"), "--density-pattern is '=0.5'; expected NAME=DENSITY"),
        (("--density-pattern", "wtf=0.5"), "density_pattern names 'wtf'"),
        (("--codec", "zip"), "codec"),
        (("--model", "gtp2"), "'gtp2' is neither a model type"),
        (("--wiring", "random:structure=3:7"), "which 7 does not divide"),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_wire_writes_nothing_when_it_refuses(run, tmp_path, options, message):
    ran = run("wire", tmp_path / "w", *TINY, *options)
    assert (ran.code, ran.out) == (1, "")
    assert message in ran.err
    assert not (tmp_path / "w").exists()


# ---- verify --------------------------------------------------------------------------------------


def test_verify_finds_a_sound_connectome_sound(run, folder):
    digest = storage.read(folder).digest
    ran = run("verify", folder, "--digest", digest[:12].upper(), "--against", folder)
    assert ran.code == 0
    assert [row[:2] for row in ran.rows[2:]] == [
        ["check", "result"],
        ["config", "ok"],
        ["file", "ok"],
        ["--digest", "ok"],
        ["--against", "ok"],
    ]
    assert run("verify", folder, "--json").json["digest"] == digest


def flip(file):
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "check", "reason"),
    [
        (lambda f: flip(f / storage.WEIGHTS_FILE), "file", "content_digest"),
        (lambda f: (f / storage.WEIGHTS_FILE).unlink(), "file", "incomplete"),
        (lambda f: edit(f / storage.CONFIG_FILE, density=7), "config", "density is 7"),
        (lambda f: edit(f / storage.CONFIG_FILE, reset="no"), "config", "unknown reset 'no'"),
        (lambda f: (f / storage.CONFIG_FILE).write_text("{"), "config", "not JSON"),
        (lambda f: edit(f / storage.CONFIG_FILE, digest="0" * 64), "file", "altered or exchanged"),
    ],
)
def test_verify_finds_damage_and_says_what(run, folder, damage, check, reason):
    damage(folder)
    ran = run("verify", folder, "--json")
    assert ran.code == 3
    (failed,) = [row for row in ran.json["checks"] if not row["ok"]]
    assert failed["check"] == check
    assert reason in failed["detail"]
    assert re.search(rf"^{check} +FAILED  ", run("verify", folder).out, re.MULTILINE)


def test_verify_finds_another_connectome_different(run, folder):
    other = stored("d", seed=1)
    ran = run("verify", folder, "--against", "d")
    assert ran.code == 3
    assert f"{other.digest[:12]}… expected" in ran.out
    assert run("verify", folder, "--digest", other.digest).code == 3


def test_verify_that_cannot_look_is_no_damage(run, folder):
    ran = run("verify", folder, "--against", "gone/from/here")
    assert (ran.code, ran.out) == (1, "")
    edit(folder / storage.CONFIG_FILE, architecture="ModelOfNextYear")
    ran = run("verify", folder)
    assert ran.code == 1
    assert "ModelOfNextYear" in ran.err


@pytest.mark.parametrize("digest", ["57ef", "z" * 12, "a" * 65])
def test_verify_refuses_what_is_no_digest(run, folder, digest):
    ran = run("verify", folder, "--digest", digest)
    assert ran.code == 1
    assert "expected 12 to 64 hex digits" in ran.err


# ---- diff ----------------------------------------------------------------------------------------


def test_diff_counts_births_and_deaths_in_each_layer(run, folder):
    a = storage.read(folder)
    b = stored("d", seed=1)
    document = run("diff", folder, "d", "--json").json
    shared = {name: int((a.mask(name) & b.mask(name)).sum()) for name in a}
    assert document["overlap"]["num_shared"] == sum(shared.values())
    assert document["overlap"]["num_deaths"] == 7176 - sum(shared.values())
    assert document["overlap"]["jaccard"] == a.overlap(b).jaccard
    assert document["overlap"]["z"] == a.overlap(b).shared.z
    assert document["overlap"]["p_value"] == a.overlap(b).shared.p_value
    layers = {row["name"]: row for row in document["layers"]}
    assert list(layers) == [
        "transformer.h.0",
        "transformer.h.1",
        "transformer.wpe",
        "transformer.wte",
    ]
    in_layer = [name for name in a if ".h.1." in name]
    expected = sum(a[name].num_survivors - shared[name] for name in in_layer)
    assert layers["transformer.h.1"]["num_births"] == expected
    every = run("diff", folder, "d", "--json", "--all").json["parameters"]
    assert {row["name"]: row["num_shared"] for row in every} == shared


def test_diff_of_a_part_says_only_deaths(run, folder):
    a = storage.read(folder)
    name = "transformer.wte.weight"
    fewer = SignedMask.pack(
        keep(torch.rand(97, 32), a.mask(name), 76), a.sign(name), orientation="embedding"
    )
    storage.write(a.replace({**a, name: fewer}), "d")
    rows = run("diff", folder, "d").rows
    assert ["only in a (deaths)", "76"] in rows
    assert ["only in b (births)", "0"] in rows
    (signs,) = [row[1] for row in rows if row[0] == "sign agreement"]
    assert re.fullmatch(r"1\.0000 \(chance 0\.50\d\d\)", signs)
    wte = next(row for row in rows if row[0] == "transformer.wte")
    assert wte[:4] == ["transformer.wte", "76", "0", "0.9021"]  # 700 / 776


def test_diff_leaves_with_3_only_if_asked_and_different(run, folder):
    stored("d", seed=1)
    assert run("diff", folder, "d").code == 0
    assert run("diff", folder, "d", "--exit-code").code == 3
    assert run("diff", folder, folder, "--exit-code").code == 0


def test_diff_of_other_bases_names_what_only_one_has(run, folder):
    stored("d", "llama")
    document = run("diff", folder, "d", "--json", "--exit-code").json
    assert document["same_base"] is False
    assert "transformer.wte.weight" in document["only_in_a"]
    assert "lm_head.weight" in document["only_in_b"]
    assert "different bases" in run("diff", folder, "d").out


def test_layers_are_in_the_order_of_their_numbers(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage.write(drawn(tiny_model("gpt2", n_layer=11), scope="body"), "c")
    names = [row["name"] for row in run("diff", "c", "c", "--json").json["layers"]]
    assert names == [f"transformer.h.{number}" for number in range(11)]


# ---- convert, load-test --------------------------------------------------------------------------


def test_convert_changes_the_codec_and_keeps_the_identity_and_the_tokenizer(run, folder):
    (folder / "tokenizer.json").write_text("{}")
    (folder / "optimizer.pt").write_text("no business of a connectome")
    document = run("convert", folder, "small", "--codec", "zstd", "--json").json
    assert document["kind"] == "connectome"
    assert document["file"]["codec"] == "zstd"
    assert storage.read("small").digest == storage.read(folder).digest == document["digest"]
    names = {storage.CONFIG_FILE, storage.WEIGHTS_FILE, "tokenizer.json"}
    assert {file.name for file in Path("small").iterdir()} == names
    assert run("convert", "small", "small", "--codec", "plain").code == 0
    assert (
        Path("small", storage.WEIGHTS_FILE).read_bytes()
        == (folder / storage.WEIGHTS_FILE).read_bytes()
    )


def test_convert_makes_a_connectome_of_a_sparse_checkpoint(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny_model("gpt2")
    wired = drawn(model)
    wire(model, wired, reset="sign_constant")
    model.save_pretrained("checkpoint")
    ran = run("convert", "checkpoint", "c")
    assert ran.code == 0
    assert ["from", "checkpoint (zeros of a trained checkpoint)"] in ran.rows
    assert storage.read("c") == wired
    assert run("convert", "checkpoint", "body", "--scope", "body").code == 0
    assert len(storage.read("body")) == 8
    run("convert", "checkpoint", "less", "--exclude", "wpe", "--exclude", "c_fc")
    assert len(storage.read("less")) == 7


def test_convert_refuses_a_dense_checkpoint_unless_told(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model("gpt2").save_pretrained("checkpoint")
    ran = run("convert", "checkpoint", "c")
    assert ran.code == 1
    assert "is dense" in ran.err
    assert not Path("c").exists()
    assert run("convert", "checkpoint", "c", "--allow-dense", "--json").json["density"] == 1.0


def test_convert_refuses_an_unknown_codec_before_it_reads(run, folder):
    ran = run("convert", folder, "x", "--codec", "zst")
    assert ran.code == 1
    assert "Did you mean 'zstd'?" in ran.err


@pytest.mark.parametrize("kind", KINDS)
def test_load_test_trains_any_architecture_a_step(kind, tmp_path):
    connectome = drawn(tiny_model(kind), reset="sign_constant")
    storage.write(connectome, tmp_path)
    trial = try_out(tmp_path)
    assert trial.reasons == []
    assert trial.model == KINDS[kind]
    assert trial.num_dead == connectome.num_weights - connectome.num_survivors
    assert 0 < trial.num_changed <= connectome.num_survivors
    assert trial.num_trainable == trial.num_parameters - trial.num_dead


def test_load_test_of_a_start_that_diverges_fails(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored("c", reset="sign_constant", magnitude=1e38)
    ran = run("load-test", "c")
    assert ran.code == 3
    assert "FAILED: the loss is nan; expected a finite number" in ran.out
    assert run("load-test", "c", "--json").json["loss"] is None


SOUND = Trial("GPT2LMHeadModel", 100, 40, 4.5, 60, 0, 40, 0.1, 0.1, None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_leaks": 3}, "3 of 60 dead weights are not 0; expected none"),
        ({"num_changed": 0}, "the step moved no survivor; expected it to learn"),
        ({"loss": float("inf")}, "the loss is inf; expected a finite number"),
    ],
)
def test_each_failure_of_a_trial_has_its_reason(change, reason):
    assert SOUND.reasons == []
    assert replace(SOUND, **change).reasons == [reason]


# ---- combine, lesion -----------------------------------------------------------------------------


def test_combine_writes_what_the_library_makes(run, folder):
    a, b = storage.read(folder), stored("d", seed=1)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "provenance.json").write_text("{}")
    document = run("combine", "union", folder, "d", "made", "--conflicts", "drop", "--json").json
    made = union(a, b, conflicts="drop")
    assert storage.read("made") == made.connectome
    assert document["digest"] == made.connectome.digest
    assert document["num_conflicts"] == document["num_dropped"] == made.num_conflicts > 0
    assert document["conflicts"] == made.conflicts
    assert storage.read("made").lineage[-1]["of"] == [a.digest, b.digest]
    assert Path("made", "tokenizer.json").is_file()
    assert not Path("made", "provenance.json").exists()
    assert run("combine", "difference", folder, "d", folder, "none").code == 0
    assert storage.read("none").num_survivors == 0
    assert run("combine", "vote", folder, "d", folder, "two", "--least", "2").code == 1
    options = ("--least", "2", "--conflicts", "majority")
    assert run("combine", "vote", folder, "d", folder, "two", *options).code == 0
    assert storage.read("two") == a


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["unite", "c", "c", "x"], "unknown operation 'unite'"),
        (["union", "c", "x"], "union of 1 connectomes; expected two or more"),
        (["union", "c", "c", "x", "--least", "1"], "--least is 1 for the operation 'union'"),
        (["vote", "c", "c", "x"], "--least is None for the operation 'vote'"),
        (["union", "c", "c", "x", "--conflicts", "no"], "unknown rule for conflicts 'no'"),
    ],
)
def test_combine_says_what_is_wrong(run, folder, arguments, said):
    ran = run("combine", *arguments)
    assert ran.code == 1
    assert said in ran.err
    assert not Path("x").exists()


def test_lesion_removes_links_and_lines(run, folder):
    a, b = storage.read(folder), stored("d", seed=1)
    document = run("lesion", folder, "x", "--part", "d", "--json").json
    assert storage.read("x") == lesion(a, b)
    assert document["num_removed"] == a.overlap(b).num_shared
    name = "transformer.h.0.mlp.c_proj.weight"
    ran = run("lesion", folder, "y", "--rows", f"{name}=0,4-7", "--columns", f"{name}=3")
    assert ran.code == 0
    assert storage.read("y") == lesion(a, {name: Lines([0, 4, 5, 6, 7], [3])})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "there is nothing to remove"),
        (["--rows", "w"], "'w' names no lines; expected NAME=LINES"),
        (["--rows", "w=a"], "'w=a' names no lines"),
        (["--columns", "transformer.wte.weight=32"], "32 columns, 0 to 31; there is no 32"),
    ],
)
def test_lesion_says_what_is_wrong(run, folder, arguments, said):
    ran = run("lesion", folder, "x", *arguments)
    assert ran.code == 1
    assert said in ran.err


# ---- the Hub -------------------------------------------------------------------------------------


def run_of_generations():
    """Lay out what evolve.py leaves: one folder a generation."""
    connectomes = []
    for generation, density in ((1, 0.8), (2, 0.64)):
        folder = Path("run", f"generation-{generation}")
        connectomes.append(stored(folder, density=density, generation=generation))
        (folder / "tokenizer.json").write_text("{}")
    return connectomes


def test_run_that_is_pushed_can_be_found_and_pulled_by_generation(
    run, client, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    client.log_in("hf_alice")
    first, second = run_of_generations()
    pushed = run("push", "run", "org/found", "--license", "apache-2.0", "--json").json["pushed"]
    assert [one["tag"] for one in pushed] == ["generation-1", "generation-2"]
    assert "generation-2" in run("push", "run", "org/found").out
    rows = run("search", "found").rows
    assert rows[0][0] == "repository"
    assert rows[1][0] == "org/found"
    ran = run("pull", "org/found@generation-1")
    assert ran.code == 0, ran.err
    assert ["next", "hf-connectome load-test found"] in ran.rows
    assert storage.read("found") == first
    assert Path("found", "tokenizer.json").read_text() == "{}"
    assert "apache-2.0" in Path("found", "README.md").read_text()
    assert storage.read("found") != second
    ran = run("show", "org/found", "--revision", "generation-2")
    assert second.digest in ran.out
    document = run("diff", "org/found@generation-1", "org/found@generation-2", "--json").json
    assert document["a"]["digest"] == first.digest
    assert run("verify", "found", "--against", "org/found@generation-1").code == 0


def test_pull_into_a_folder_with_something_in_it_is_refused(run, folder):
    Path("full").mkdir()
    Path("full", "thesis.tex").write_text("mine")
    ran = run("pull", "org/any", "full")
    assert ran.code == 1
    assert "full is there already" in ran.err
    assert Path("full", "thesis.tex").read_text() == "mine"


def test_push_and_pull_say_why_the_hub_refuses(run, client, folder):
    client.log_in("hf_bob")
    ran = run("push", folder, "org/not-bobs")
    assert ran.code == 1
    assert "(HTTP 403" in ran.err
    ran = run("pull", "org/not-there", "new")
    assert ran.code == 1
    assert "the Hub has no repository 'org/not-there'" in ran.err
    assert not Path("new").exists()


def test_search_that_finds_nothing_says_so(run, client):
    ran = run("search", "nothing-of-the-kind")
    assert (ran.code, ran.out) == (
        0,
        "No repository of that kind carries the tag 'connectome'.\n",
    )
    assert run("search", "nothing-of-the-kind", "--json").json["found"] == []


def test_two_revisions_for_one_path_are_refused(run):
    ran = run("show", "org/x@generation-1", "--revision", "generation-2")
    assert ran.code == 1
    assert "names the revision 'generation-1', --revision 'generation-2'" in ran.err


# ---- as an extension of hf -----------------------------------------------------------------------


def test_hf_lists_and_runs_the_program_as_its_extension(tmp_path):
    """Lay out what ``hf extensions install owner/hf-connectome`` leaves, without GitHub."""
    extension = tmp_path / ".local" / "share" / "hf" / "extensions" / "hf-connectome"
    script = extension / "venv" / "bin" / "hf-connectome"
    script.parent.mkdir(parents=True)
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m hf_connectome.cli "$@"\n')
    script.chmod(0o755)
    manifest = {
        "owner": "owner",
        "repo": "hf-connectome",
        "repo_id": "owner/hf-connectome",
        "short_name": "connectome",
        "executable_path": str(script),
        "type": "python",
        "installed_at": datetime.now(timezone.utc).isoformat(),
    }
    (extension / "manifest.json").write_text(json.dumps(manifest))
    environment = os.environ | {
        "HOME": str(tmp_path),
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "PYTHONPATH": str(ROOT),
    }

    def call(*arguments):
        return subprocess.run(
            [str(part) for part in hf(*arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    assert "hf connectome" in call("extensions", "list").stdout
    assert call("connectome", "--version").stdout == f"hf-connectome {__version__}\n"
    done = call("extensions", "exec", "connectome", "show", "nowhere/at/all")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")


def test_project_has_what_hf_looks_for_in_an_extension():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'hf-connectome = "hf_connectome.cli:main"' in text
    assert re.search(r'^description = ".+"$', text, re.MULTILINE)  # what `hf extensions list` shows
    # A file of that name in the root would be taken for the whole program.
    assert not (ROOT / "hf-connectome").exists()


# ---- lineage -------------------------------------------------------------------------------------


def test_lineage_is_stored_listed_and_taken_out(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parent = stored("run/generation-0", density=1.0)
    half = dict(drawn(tiny_model("gpt2"), density=0.5, seed=0).items())
    child = parent.replace(half, config=replace(parent.config, generation=1))
    storage.write(child, "run/generation-1")
    ran = run("lineage", "run", "x.safetensors", "--json")
    assert ran.code == 0
    assert ran.json["bytes"] == Path("x.safetensors").stat().st_size
    digests = [row["digest"] for row in ran.json["generations"]]
    assert digests == [parent.digest, child.digest]
    listed = run("lineage", "x.safetensors")
    assert all(digest[:12] in listed.out for digest in digests)
    assert run("lineage", "x.safetensors", "all").code == 0
    assert storage.read("all/generation-1") == child
    assert run("lineage", "x.safetensors", "one", "--generation", 1).code == 0
    assert storage.read("one") == child
    for wrong in (["run"], ["run", "y", "--generation", 1], ["x.safetensors", "--generation", 7]):
        assert run("lineage", *wrong).code == 1


# ---- docs/CLI.md ---------------------------------------------------------------------------------


def sections():
    parts = re.split(r"^## ", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {part.partition("\n")[0].strip(): part for part in parts}


def options_of(run, command):
    return set(
        re.findall(r"(?<![\w-])--[a-z][a-z-]*", run(command, "--help").out.split("Options:")[1])
    )


SHARED = {
    *("--revision", "--subfolder", "--token", "--cache-dir", "--local-files-only"),
    *("--json", "--help"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_document_has_every_option_of_every_command_and_no_other(run, command):
    described = set(re.findall(r"`(--[a-z][a-z-]*)", sections()[command]))
    real = options_of(run, command)
    assert real - SHARED <= described
    assert described <= real
    assert set(re.findall(r"`(--[a-z][a-z-]*)", sections()["All commands"])) >= SHARED


def test_document_has_the_exit_codes():
    rows = re.findall(r"^\| (\d+) +\|", sections()["All commands"], re.MULTILINE)
    assert [int(row) for row in rows] == [int(code) for code in Code]


def shape(text):
    """Return what stays the same from run to run: labels and headings, not values."""
    labels = []
    for line in text.splitlines():
        first = re.split(r"\s{2,}", line.strip())
        if len(first) > 2 and not re.search(r"\d", line):
            labels.append(tuple(first))
        elif line and not line.startswith(" "):
            labels.append(first[0] if not re.search(r"[\d*./]", first[0]) else "…")
    return [label for label in labels if label != "…"]


@pytest.mark.parametrize("command", ["verify", "diff", "convert", "wire", "load-test"])
def test_documented_output_has_the_shape_of_the_real_one(run, folder, command):
    (call, output), *_ = re.findall(
        r"```\n\$ hf-connectome ([^\n]+)\n(.*?)```", sections()[command], re.DOTALL
    )
    Path("runs/cpu").mkdir(parents=True)
    for generation in (5, 6):
        connectome = Connectome.from_pretrained(folder)
        storage.write(connectome, f"runs/cpu/generation-{generation}")
    words = call.split()
    if "--digest" in words:
        words[words.index("--digest") + 1] = storage.read(folder).digest[:12]
    assert shape(run(*words).out) == shape(output)
