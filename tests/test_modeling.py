from __future__ import annotations

import copy
import json
import shutil
import socket

import pytest
import torch
import transformers
from peft import PeftModel
from tiny_hosts import CONFIGS, inputs, logits, tiny

from hf_connectome import Connectome, ConnectomeConfig, ConnectomeModel, SignedMask, random_twin
from hf_connectome.adapter import draw
from hf_connectome.errors import (
    ConfigError,
    FormatError,
    HostMismatchError,
    HubError,
    UnknownNameError,
    UnsupportedError,
)
from hf_connectome.skills import ConnectomeLayer
from hf_connectome.storage import CONFIG_FILE, WEIGHTS_FILE, read, write

GPT2 = "GPT2LMHeadModel"
WTE = "transformer.wte.weight"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*address):
        raise AssertionError(f"the network was used: {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def store(path, architecture=GPT2, **settings):
    write(draw(tiny(architecture), ConnectomeConfig(**{"density": 0.25, **settings})), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return store(tmp_path_factory.mktemp("connectome"), reset="sign_constant")


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(before, after):
    return before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


# ---- fresh ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", CONFIGS)
def test_fresh_model_is_wired_sign_initialised_and_ready_to_train(tmp_path, architecture):
    store(tmp_path, architecture)
    torch.manual_seed(123)
    model = ConnectomeModel.from_pretrained(tmp_path, seed=0)
    base, connectome = model.get_base_model(), read(tmp_path)
    assert type(base).__name__ == architecture
    assert list(base.state_dict()) == list(tiny(architecture).state_dict())
    assert model.training
    assert base.training
    for name, parameter in base.named_parameters():
        assert parameter.requires_grad
        assert parameter.dtype == torch.float32
        if name in connectome:
            assert torch.equal(parameter.detach(), connectome.sign(name) * torch.tensor(0.02))
            assert int((parameter != 0).sum()) == connectome[name].num_survivors
        else:
            assert parameter.detach().unique().numel() == 1  # norms and biases start constant
    assert model.connectome == connectome


def test_fresh_model_depends_on_the_seed_alone(tmp_path):
    store(tmp_path, target_modules="body")
    models = []
    for global_seed, seed in ((1, 7), (2, 7), (1, 8)):
        torch.manual_seed(global_seed)
        models.append(weights(ConnectomeModel.from_pretrained(tmp_path, seed=seed)))
        undisturbed = torch.rand(1)
        torch.manual_seed(global_seed)
        assert torch.equal(undisturbed, torch.rand(1))
    first, again, other = models
    differing = {name.removeprefix("base_model.model.") for name in first} - {
        name.removeprefix("base_model.model.")
        for name in first
        if torch.equal(first[name], other[name])
    }
    assert same(first, again)
    assert differing == {WTE, "transformer.wpe.weight"}  # the random parameters out of scope


def test_seed_is_0_unless_given(tmp_path):
    store(tmp_path, target_modules="body")
    default = weights(ConnectomeModel.from_pretrained(tmp_path))
    assert same(default, weights(ConnectomeModel.from_pretrained(str(tmp_path), seed=0)))


@pytest.mark.parametrize(
    ("recorded", "given", "first"),
    [
        ("keep", {}, 0.02),
        ("sign_constant", {}, 0.02),
        ("sign_constant", {"magnitude": 0.5}, 0.5),
        ("init_std", {"reset": "sign_constant", "magnitude": 0.125}, 0.125),
        ("fresh_magnitude", {}, None),
        ("sign_constant", {"reset": "keep"}, None),
    ],
)
def test_survivors_start_as_recorded_unless_told(tmp_path, recorded, given, first):
    store(tmp_path, reset=recorded)
    model = ConnectomeModel.from_pretrained(tmp_path, seed=4, **given)
    weight, sign = weights(model.get_base_model())[WTE], model.connectome.sign(WTE)
    fresh = weights(tiny(GPT2, seed=4))[WTE]
    if first is not None:
        assert torch.equal(weight, sign * torch.tensor(first))
    elif given:
        assert torch.equal(weight, fresh * (sign != 0))
    else:
        assert torch.equal(weight, fresh.abs() * sign)
    assert model.connectome.config.reset == recorded


def test_random_weights_are_kept_when_there_are_no_signs(tmp_path):
    connectome = draw(tiny(GPT2), ConnectomeConfig(density=0.25))
    entries = {
        n: SignedMask.pack(e.mask(), orientation=e.orientation) for n, e in connectome.items()
    }
    write(connectome.replace(entries), tmp_path)
    model = ConnectomeModel.from_pretrained(tmp_path, seed=4)
    expected = weights(tiny(GPT2, seed=4))[WTE] * connectome.mask(WTE)
    assert torch.equal(weights(model.get_base_model())[WTE], expected)
    with pytest.raises(ConfigError, match="has a mask but no signs"):
        ConnectomeModel.from_pretrained(tmp_path, reset="sign_constant")


def test_dtype_is_float32_unless_given(folder):
    model = ConnectomeModel.from_pretrained(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_control_is_built_like_the_connectome(folder, tmp_path):
    write(random_twin(read(folder), seed=1), tmp_path)
    control = ConnectomeModel.from_pretrained(tmp_path, seed=0)
    model = ConnectomeModel.from_pretrained(folder, seed=0)
    assert control.connectome.densities() == model.connectome.densities()
    assert control.connectome != model.connectome


@pytest.mark.parametrize("architecture", CONFIGS)
def test_unloaded_model_is_an_ordinary_checkpoint_with_zeros(tmp_path, architecture):
    store(tmp_path, architecture, reset="sign_constant")
    model = ConnectomeModel.from_pretrained(tmp_path, seed=0).eval()
    connectome, expected = model.connectome, logits(model, architecture)
    plain = model.merge_and_unload()
    plain.save_pretrained(tmp_path / "trained")
    again, info = getattr(transformers, architecture).from_pretrained(
        tmp_path / "trained", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(logits(again, architecture), expected)
    for name, weight in weights(again).items():
        if name in connectome:
            assert torch.equal(weight != 0, connectome.mask(name))


def test_auto_class_loads_the_trained_checkpoint(folder, tmp_path):
    plain = ConnectomeModel.from_pretrained(folder, seed=0).merge_and_unload()
    plain.save_pretrained(tmp_path)
    auto = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert same(weights(auto), weights(plain))


def test_base_model_trains_in_the_stock_trainer_and_stays_sparse(folder, tmp_path):
    model = ConnectomeModel.from_pretrained(folder, seed=0)
    base, connectome, before = model.get_base_model(), model.connectome, weights(model)
    row = {"input_ids": torch.arange(8), "labels": torch.arange(8)}
    arguments = transformers.TrainingArguments(
        tmp_path, use_cpu=True, max_steps=2, report_to=[], disable_tqdm=True, weight_decay=0.1
    )
    transformers.Trainer(base, arguments, train_dataset=[row] * 16).train()
    assert not same(before, weights(model))
    for name in connectome:
        assert not weights(base)[name][~connectome.mask(name)].any()
    assert (tmp_path / "checkpoint-2" / "model.safetensors").is_file()


def test_copy_of_a_model_keeps_its_dead_weights_at_zero(folder):
    model = ConnectomeModel.from_pretrained(folder, seed=0)
    twin = copy.deepcopy(model)
    twin(**inputs(GPT2), labels=inputs(GPT2)["input_ids"]).loss.backward()
    gradient = twin.get_base_model().transformer.wte.weight.grad
    assert not gradient[~model.connectome.mask(WTE)].any()
    assert gradient.any()
    assert model.get_base_model().transformer.wte.weight.grad is None


def test_generation_passes_through(folder):
    model = ConnectomeModel.from_pretrained(folder, seed=0).eval()
    prompt = inputs(GPT2) | {"attention_mask": torch.ones(1, 6, dtype=torch.long)}
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    mine = model.generate(**prompt, **options)
    assert torch.equal(mine, model.get_base_model().generate(**prompt, **options))


# ---- on a given model ----------------------------------------------------------------------------


def test_skill_masks_the_given_weights_and_can_be_switched_off(folder):
    host = tiny(GPT2)
    dense = logits(host, GPT2)
    model = ConnectomeModel.from_pretrained(host.train(), folder)
    twin = tiny(GPT2)
    read(folder).to(twin, reset="keep")
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert torch.equal(logits(model, GPT2), logits(twin, GPT2))
    with model.disable_adapter():
        assert torch.equal(logits(model, GPT2), dense)
    assert torch.equal(logits(model, GPT2), logits(twin, GPT2))


def test_given_weights_are_kept_in_place_when_trainable(folder):
    host, twin = tiny(GPT2), tiny(GPT2)
    read(folder).to(twin, reset="keep")
    model = ConnectomeModel.from_pretrained(host, folder, is_trainable=True)
    assert same(weights(host), weights(twin))
    assert model.training
    assert all(p.requires_grad for p in host.parameters())


def test_given_weights_are_reset_when_asked(folder):
    host = tiny(GPT2)
    ConnectomeModel.from_pretrained(
        host, folder, is_trainable=True, reset="sign_constant", magnitude=0.5
    )
    assert torch.equal(weights(host)[WTE], read(folder).sign(WTE) * 0.5)


def test_given_model_may_be_of_a_class_that_transformers_lacks(folder, tmp_path):
    class Mine(transformers.GPT2LMHeadModel):
        pass

    write(draw(Mine(CONFIGS[GPT2]()), ConnectomeConfig(density=0.25)), tmp_path)
    with pytest.raises(ConfigError, match="'Mine' is no model class"):
        ConnectomeModel.from_pretrained(tmp_path)
    model = ConnectomeModel.from_pretrained(Mine(CONFIGS[GPT2]()), tmp_path)
    assert model.connectome == Connectome.from_pretrained(tmp_path, host=tiny(GPT2))


def test_skills_are_added_switched_and_intersected(folder, tmp_path):
    store(tmp_path, seed=5)
    model = ConnectomeModel.from_pretrained(tiny(GPT2), folder, "first")
    model.load_adapter(tmp_path, "second")
    alone = logits(model, GPT2)
    model.set_adapter("second")
    assert model.connectome == read(tmp_path)
    other = logits(model, GPT2)
    model.set_adapter(["first", "second"])
    both = logits(model, GPT2)
    twin = tiny(GPT2)
    read(folder).to(twin, reset="keep")
    assert torch.equal(alone, logits(twin, GPT2))
    read(tmp_path).to(twin, reset="keep")
    assert torch.equal(both, logits(twin, GPT2))
    assert not torch.equal(alone, other)
    model.set_adapter("first")
    assert torch.equal(logits(model, GPT2), alone)


@pytest.mark.parametrize(
    "act",
    [
        lambda model, path: model.set_adapter("other"),
        lambda model, path: model.set_adapter(["default", "other"]),
        lambda model, path: model.delete_adapter("other"),
        lambda model, path: model.save_pretrained(path, selected_adapters=["default", "other"]),
    ],
)
def test_unknown_adapter_is_refused(folder, tmp_path, act):
    model = ConnectomeModel.from_pretrained(tiny(GPT2), folder)
    with pytest.raises(UnknownNameError, match=r"unknown adapter 'other'.*Available: default"):
        act(model, tmp_path)
    assert not any(tmp_path.iterdir())
    assert model.active_adapters == ["default"]


def test_taken_name_is_refused(folder):
    model = ConnectomeModel.from_pretrained(tiny(GPT2), folder)
    with pytest.raises(ValueError, match="'default' already exists"):
        model.load_adapter(folder, "default")


# ---- saving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fresh", [True, False])
def test_saved_files_are_those_that_were_read(folder, tmp_path, fresh):
    host = () if fresh else (tiny(GPT2),)
    model = ConnectomeModel.from_pretrained(*host, folder)
    model.save_pretrained(tmp_path, max_shard_size="1GB")  # as push_to_hub calls it
    assert sorted(f.name for f in tmp_path.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_adapters_are_saved_by_name_and_only_by_the_main_process(folder, tmp_path):
    model = ConnectomeModel.from_pretrained(tiny(GPT2), folder)
    model.load_adapter(folder, "second")
    model.save_pretrained(tmp_path, is_main_process=False)
    assert not any(tmp_path.iterdir())
    model.save_pretrained(tmp_path)
    assert read(tmp_path) == read(tmp_path / "second") == read(folder)
    model.save_pretrained(tmp_path / "one", selected_adapters=["second"])
    assert [f.name for f in (tmp_path / "one").iterdir()] == ["second"]


# ---- status --------------------------------------------------------------------------------------


def test_counts_leave_out_dead_weights_when_in_place(folder, capsys):
    model = ConnectomeModel.from_pretrained(folder)
    dead = model.connectome.num_weights - model.connectome.num_survivors
    total = sum(p.numel() for p in model.parameters())
    assert model.get_nb_trainable_parameters() == (total - dead, total)
    model.print_trainable_parameters()
    assert f"{total - dead:,}" in capsys.readouterr().out


def test_status_tells_the_two_paths_apart(folder):
    trained = ConnectomeModel.from_pretrained(folder)
    assert [layer.module_type for layer in trained.get_layer_status()] == ["connectome.InPlace"]
    status = trained.get_model_status()
    assert (status.num_adapter_layers, status.merged_adapters) == (1, ["default"])
    frozen = ConnectomeModel.from_pretrained(tiny(GPT2), folder)
    status = frozen.get_model_status()
    assert (status.num_adapter_layers, status.merged_adapters) == (11, [])
    assert status.peft_types == trained.get_model_status().peft_types == {"default": "CONNECTOME"}


def test_switching_off_is_refused_when_in_place(folder):
    model = ConnectomeModel.from_pretrained(folder)
    with (
        pytest.raises(UnsupportedError, match="dead weights are gone"),
        model.disable_adapter(),
    ):
        pass


# ---- what is refused, with nothing changed -------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ({"n_embd": 16}, r"is \(16, 48\) in the host, \(32, 96\) in the connectome"),
        ({"vocab_size": 101}, r"\(101, 32\) in the host, \(97, 32\) in the.* vocabularies differ"),
        ({"n_layer": 1}, r"has no parameter 'transformer\.h\.1\."),
    ],
)
@pytest.mark.parametrize("trainable", [True, False])
def test_host_of_other_sizes_is_refused(folder, host, message, trainable):
    model = tiny(GPT2, **host)
    before, modules = weights(model), [type(m) for m in model.modules()]
    with pytest.raises(HostMismatchError, match=message):
        ConnectomeModel.from_pretrained(model, folder, is_trainable=trainable)
    assert same(before, weights(model))
    assert [type(m) for m in model.modules()] == modules
    assert all(p.requires_grad for p in model.parameters())


def test_host_that_stores_a_matrix_the_other_way_is_refused(tmp_path):
    linear = torch.nn.Sequential(torch.nn.Linear(4, 4))
    conv1d = torch.nn.Sequential(transformers.pytorch_utils.Conv1D(4, 4))
    write(draw(linear, ConnectomeConfig(density=0.5)), tmp_path)
    with pytest.raises(HostMismatchError, match="orientation"):
        ConnectomeModel.from_pretrained(conv1d, tmp_path)
    assert not any(isinstance(m, ConnectomeLayer) for m in conv1d.modules())


def altered(folder, tmp_path, change):
    target = shutil.copytree(folder, tmp_path / "altered")
    change(target)
    return target


def _truncate(path):
    file = path / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-100])


def _flip(path):
    data = bytearray((path / WEIGHTS_FILE).read_bytes())
    data[-1] ^= 1
    (path / WEIGHTS_FILE).write_bytes(data)


def _foreign(path):
    from safetensors.torch import save_file

    save_file({"lora_A": torch.zeros(1)}, path / WEIGHTS_FILE, metadata={"format": "pt"})


def _other_method(path):
    fields = json.loads((path / CONFIG_FILE).read_text())
    (path / CONFIG_FILE).write_text(json.dumps(fields | {"peft_type": "LORA"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_truncate, "not a sound safetensors file"),
        (_flip, "content_digest is"),
        (_foreign, "format 'pt', expected 'connectome'"),
        (_other_method, "kind 'LORA'"),
        (lambda path: (path / WEIGHTS_FILE).unlink(), "is incomplete"),
        (lambda path: (path / CONFIG_FILE).unlink(), f"there is no {CONFIG_FILE}"),
    ],
)
def test_damaged_or_foreign_files_are_refused(folder, tmp_path, change, message):
    path = altered(folder, tmp_path, change)
    with pytest.raises(FormatError, match=message):
        ConnectomeModel.from_pretrained(path)
    host = tiny(GPT2)
    before = weights(host)
    for trainable in (True, False):
        with pytest.raises(FormatError, match=message):
            ConnectomeModel.from_pretrained(host, path, is_trainable=trainable)
    assert same(before, weights(host))
    model = ConnectomeModel.from_pretrained(host, folder)
    with pytest.raises(FormatError, match=message):
        model.load_adapter(path, "second")
    assert list(model.peft_config) == ["default"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda path: (("gpt2", path), {}), "expected a model beside"),
        (lambda path: ((tiny(GPT2),), {}), "no connectome for it"),
        (lambda path: ((path,), {"is_trainable": False}), "no weights worth freezing"),
        (lambda path: ((tiny(GPT2), path), {"reset": "keep"}), "leaves the weights as they are"),
        (lambda path: ((tiny(GPT2), path), {"magnitude": 0.1}), "leaves the weights as they are"),
    ],
)
def test_options_of_the_other_form_are_refused(folder, arguments, message):
    given, named = arguments(folder)
    with pytest.raises(ConfigError, match=message):
        ConnectomeModel.from_pretrained(*given, **named)


def test_misspelt_option_is_refused(folder):
    with pytest.raises(TypeError, match="sed"):
        ConnectomeModel.from_pretrained(folder, sed=1)


def test_unknown_reset_is_refused_with_the_nearest(folder):
    host = tiny(GPT2)
    before = weights(host)
    with pytest.raises(UnknownNameError, match="Did you mean 'sign_constant'"):
        ConnectomeModel.from_pretrained(host, folder, is_trainable=True, reset="sign_const")
    assert same(before, weights(host))


# ---- places --------------------------------------------------------------------------------------


def test_connectome_is_found_in_a_subfolder_of_a_trained_checkpoint(folder, tmp_path):
    ConnectomeModel.from_pretrained(folder).merge_and_unload().save_pretrained(tmp_path)
    shutil.copytree(folder, tmp_path / "connectome")
    model = ConnectomeModel.from_pretrained(tmp_path, subfolder="connectome")
    assert model.connectome == read(folder)
    trained = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    on_it = ConnectomeModel.from_pretrained(trained, tmp_path, subfolder="connectome")
    assert torch.equal(logits(on_it, GPT2), logits(trained, GPT2))
    with pytest.raises(FormatError, match="subfolder='connectome'"):
        ConnectomeModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("no/such/folder", FormatError, "is no folder here and cannot be a Hub id"),
        ("owner/not-in-the-cache", HubError, "is not in the cache.*It is no folder here either"),
    ],
)
def test_missing_place_is_named(tmp_path, place, error, message):
    with pytest.raises(error, match=f"'{place}' {message}"):
        ConnectomeModel.from_pretrained(place, local_files_only=True, cache_dir=tmp_path)


def test_repository_is_taken_from_the_cache_when_offline(folder, tmp_path):
    snapshot = tmp_path / "models--owner--wiring" / "snapshots" / ("a" * 40)
    shutil.copytree(folder, snapshot)
    refs = tmp_path / "models--owner--wiring" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    model = ConnectomeModel.from_pretrained(
        "owner/wiring", cache_dir=tmp_path, local_files_only=True
    )
    assert model.connectome == read(folder)


def test_host_of_another_vocabulary_is_refused_by_peft_s_own_loader(folder):
    host = tiny(GPT2, vocab_size=50)
    with pytest.raises(
        HostMismatchError, match=r"wte.weight' is \(50, 32\) in the host, \(97, 32\)"
    ):
        PeftModel.from_pretrained(host, folder)


def test_deeper_host_is_refused(tmp_path):
    write(draw(tiny(GPT2, n_layer=1), ConnectomeConfig(density=0.25)), tmp_path)
    for load in (ConnectomeModel.from_pretrained, PeftModel.from_pretrained):
        with pytest.raises(HostMismatchError, match="which the recorded architecture has not"):
            load(tiny(GPT2, n_layer=2), tmp_path)


def test_fresh_model_of_a_rewound_connectome_starts_from_signs(tmp_path):
    store(tmp_path, reset="rewind")
    model = ConnectomeModel.from_pretrained(tmp_path, seed=0).get_base_model()
    values = model.transformer.wte.weight.detach().unique()
    assert torch.allclose(values, torch.tensor([-0.02, 0.0, 0.02]))
    assert model.loss_type == "ForCausalLM"
