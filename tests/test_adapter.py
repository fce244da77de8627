from __future__ import annotations

import copy
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
import transformers
from peft import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from tiny_hosts import CONFIGS, inputs, logits, tiny
from torch import nn

from hf_connectome import Connectome, ConnectomeConfig, ConnectomeModel, ConnectomeTuner
from hf_connectome.adapter import draw, register
from hf_connectome.bound import BoundConfig
from hf_connectome.errors import (
    ConfigError,
    FormatError,
    HostMismatchError,
    ScopeError,
    UnknownNameError,
    UnsupportedError,
)
from hf_connectome.skills import ConnectomeLayer, Linear
from hf_connectome.storage import read, write

GPT2 = "GPT2LMHeadModel"
WTE = "transformer.wte.weight"


def drawn(model, **settings):
    return draw(model, ConnectomeConfig(**{"density": 0.25, **settings}))


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(before, after):
    return before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


def in_place(connectome, architecture, **options):
    """The model that a skill must equal: the same base with the mask in its weights."""
    host = tiny(architecture, **options)
    connectome.to(host, reset="keep")
    return host


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("connectome")
    write(drawn(tiny(GPT2), reset="sign_constant", seed=3), path)
    return path


# ---- registration --------------------------------------------------------------------------------


def test_nothing_changes_when_registered_again():
    before = dict(PEFT_TYPE_TO_TUNER_MAPPING)
    register()
    assert before == PEFT_TYPE_TO_TUNER_MAPPING
    assert PEFT_TYPE_TO_TUNER_MAPPING["CONNECTOME"] is ConnectomeTuner
    assert PEFT_TYPE_TO_PREFIX_MAPPING["CONNECTOME"] == "connectome_"


def test_peft_knows_the_method_when_only_the_config_was_imported(folder):
    code = (
        "from hf_connectome import ConnectomeConfig\n"
        "from peft import PeftConfig\n"
        "from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING\n"
        f"print(type(PeftConfig.from_pretrained({str(folder)!r})).__name__,"
        " 'CONNECTOME' in PEFT_TYPE_TO_TUNER_MAPPING)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["ConnectomeConfig", "True"]


# ---- drawing and training in place ---------------------------------------------------------------


@pytest.mark.parametrize("architecture", CONFIGS)
def test_base_is_wired_but_untouched_otherwise_when_trainable(architecture):
    host = tiny(architecture)
    keys, modules = list(host.state_dict()), [type(m) for m in host.modules()]
    model = get_peft_model(host, ConnectomeConfig(density=0.25))
    connectome = model.base_model.connectome()
    assert model.get_base_model() is host
    assert (list(host.state_dict()), [type(m) for m in host.modules()]) == (keys, modules)
    assert all(p.requires_grad for p in host.parameters())
    fresh = weights(tiny(architecture))
    for name, weight in weights(host).items():
        mask = connectome.mask(name) if name in connectome else torch.tensor(True)
        assert torch.equal(weight, fresh[name] * mask)


def test_counts_are_exact_and_equal_shapes_get_other_masks():
    connectome = drawn(tiny("LlamaForCausalLM"), density=0.3)
    for entry in connectome.values():
        assert entry.num_survivors == round(0.3 * entry.num_weights)
    layer = "model.layers.0.self_attn."
    assert not torch.equal(
        connectome.mask(f"{layer}q_proj.weight"), connectome.mask(f"{layer}o_proj.weight")
    )


def test_drawing_depends_on_the_seed_of_the_config_alone():
    torch.manual_seed(1)
    first = get_peft_model(tiny(GPT2), ConnectomeConfig(density=0.25, seed=5))
    torch.manual_seed(2)
    second = get_peft_model(tiny(GPT2, seed=9), ConnectomeConfig(density=0.25, seed=5))
    other = get_peft_model(tiny(GPT2), ConnectomeConfig(density=0.25, seed=6))
    assert first.base_model.connectome() == second.base_model.connectome()
    assert first.base_model.connectome() != other.base_model.connectome()


def test_config_describes_the_host_and_the_users_own_is_left_alone():
    mine = ConnectomeConfig(density=0.25, target_modules="body", density_pattern={})
    model = get_peft_model(tiny(GPT2), mine)
    config = model.peft_config["default"]
    assert mine.base_fingerprint is None
    assert (config.architecture, config.base_config["n_embd"]) == (GPT2, 32)
    assert len(config.base_fingerprint) == 64
    assert WTE not in model.base_model.connectome()


def test_reset_and_magnitude_of_the_config_give_first_values():
    host = tiny(GPT2)
    config = ConnectomeConfig(density=0.25, reset="sign_constant", magnitude=0.5)
    connectome = get_peft_model(host, config).base_model.connectome()
    assert torch.equal(weights(host)[WTE], connectome.sign(WTE) * 0.5)


def test_density_pattern_sets_single_parameters():
    connectome = drawn(tiny(GPT2), density=0.5, density_pattern={WTE: 0.125})
    assert connectome.densities()[WTE] == 0.125
    assert connectome.densities()["transformer.wpe.weight"] == 0.5


def test_density_pattern_is_refused_when_a_name_matches_nothing():
    host = tiny(GPT2)
    before = weights(host)
    with pytest.raises(ScopeError, match=r"transformer\.wtf\.weight.*Did you mean '" + WTE):
        get_peft_model(host, ConnectomeConfig(density_pattern={"transformer.wtf.weight": 0.1}))
    assert same(before, weights(host))


def test_scope_is_refused_when_it_matches_nothing():
    with pytest.raises(ScopeError, match="matches no parameter"):
        get_peft_model(tiny(GPT2), ConnectomeConfig(target_modules=["q_proj"]))


def test_dead_weights_stay_zero_when_an_optimizer_knows_nothing_of_masks():
    host = tiny(GPT2)
    connectome = get_peft_model(host, ConnectomeConfig(density=0.25)).base_model.connectome()
    before = weights(host)
    optimizer = torch.optim.AdamW(host.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(3):
        host(**inputs(GPT2), labels=inputs(GPT2)["input_ids"]).loss.backward()
        optimizer.step()
    for name in connectome:
        weight = weights(host)[name]
        assert torch.equal(weight[~connectome.mask(name)].unique(), torch.zeros(1))
        assert not torch.equal(weight, before[name])


def test_second_connectome_is_refused_when_one_is_in_place(folder):
    host = tiny(GPT2)
    model = get_peft_model(host, ConnectomeConfig(density=0.25))
    before = weights(host)
    with pytest.raises(UnsupportedError, match="'default' is in place on this model"):
        model.add_adapter("other", ConnectomeConfig(density=0.5))
    with pytest.raises(UnsupportedError, match="merge_and_unload"):
        model.load_adapter(str(folder), "other")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UnsupportedError, match="in place on this model"):
            get_peft_model(host, ConnectomeConfig(density=0.5))
    assert same(before, weights(host))
    assert list(model.peft_config) == ["default"]


def test_in_place_is_refused_when_the_base_has_frozen_skills(folder):
    model = PeftModel.from_pretrained(tiny(GPT2), str(folder))
    with pytest.raises(UnsupportedError, match="frozen skills"):
        model.add_adapter("other", ConnectomeConfig(density=0.5))


@pytest.mark.parametrize(
    "act",
    [
        lambda tuner: tuner.unmerge_adapter(),
        lambda tuner: tuner.unload(),
        lambda tuner: tuner.disable_adapter_layers(),
        lambda tuner: tuner.delete_adapter("default"),
    ],
)
def test_dense_weights_are_refused_when_a_connectome_is_in_place(act):
    tuner = get_peft_model(tiny(GPT2), ConnectomeConfig(density=0.25)).base_model
    with pytest.raises(UnsupportedError, match="dead weights are gone"):
        act(tuner)


def test_merge_and_unload_gives_the_plain_model_without_hooks_when_in_place():
    host = tiny(GPT2)
    model = get_peft_model(host, ConnectomeConfig(density=0.25))
    model.merge_adapter()
    with torch.no_grad():
        host.transformer.wte.weight.add_(1.0)  # an optimizer that nobody attached
    mask = model.base_model.connectome().mask(WTE)
    plain = model.merge_and_unload()
    assert plain is host
    assert torch.equal(plain.transformer.wte.weight != 0, mask)
    assert not hasattr(plain, "peft_config")
    plain(**inputs(GPT2), labels=inputs(GPT2)["input_ids"]).loss.backward()
    assert plain.transformer.wte.weight.grad[~mask].abs().sum() > 0
    get_peft_model(plain, ConnectomeConfig(density=0.5))


# ---- frozen skills -------------------------------------------------------------------------------

WRAPPABLE = {name: {} for name in CONFIGS if name not in {"MixtralForCausalLM"}} | {
    "ViTForImageClassification": {"exclude_modules": ["embeddings"]},
    "MixtralForCausalLM": {"target_modules": "all-linear"},
}


@pytest.mark.parametrize("architecture", WRAPPABLE)
def test_skill_equals_the_model_masked_in_place(architecture):
    host = tiny(architecture)
    dense, before = logits(host, architecture), weights(host)
    settings = ConnectomeConfig(density=0.5, inference_mode=True, **WRAPPABLE[architecture])
    model = get_peft_model(host, settings)
    connectome = model.base_model.connectome()
    masked = logits(in_place(connectome, architecture), architecture)
    assert torch.equal(logits(model, architecture), masked)
    assert not torch.equal(masked, dense)
    with model.disable_adapter():
        assert torch.equal(logits(model, architecture), dense)
    model.merge_adapter()
    assert torch.equal(logits(model, architecture), masked)
    model.unmerge_adapter()
    assert torch.equal(logits(model, architecture), masked)
    assert not any(p.requires_grad for p in model.parameters())
    assert model.unload() is host
    assert same(before, weights(host))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", [GPT2, "BertForMaskedLM", "T5ForConditionalGeneration"])
def test_head_is_masked_when_its_weight_is_tied_to_a_masked_embedding(architecture, tied):
    host = tiny(architecture, tie_word_embeddings=tied)
    model = get_peft_model(
        host, ConnectomeConfig(density=0.5, target_modules="embeddings", inference_mode=True)
    )
    table, head = host.get_input_embeddings(), host.get_output_embeddings()
    assert isinstance(head, Linear)
    assert isinstance(table, ConnectomeLayer)
    assert (table.connectome_masks is head.connectome_masks) == tied
    connectome = model.base_model.connectome()
    twin = in_place(connectome, architecture, tie_word_embeddings=tied)
    assert torch.equal(logits(model, architecture), logits(twin, architecture))
    model.merge_adapter()
    assert (table.weight is head.weight) == tied
    assert torch.equal(logits(model, architecture), logits(twin, architecture))
    plain = model.merge_and_unload()
    assert plain.config.tie_word_embeddings == tied
    assert torch.equal(logits(plain, architecture), logits(twin, architecture))


@pytest.fixture
def skills():
    """One base with two skills, 'a' active, and what they are."""
    host = tiny(GPT2)
    model = get_peft_model(host, ConnectomeConfig(density=0.5, inference_mode=True), "a")
    partial = ConnectomeConfig(density=0.5, seed=1, target_modules="body", inference_mode=True)
    model.add_adapter("b", partial)
    return model, {name: model.base_model.connectome(name) for name in ("a", "b")}


def test_skills_are_switched_on_one_base(skills):
    model, wirings = skills
    for name in ("a", "b", "a"):
        model.set_adapter(name)
        masked = in_place(wirings[name], GPT2)
        assert torch.equal(logits(model, GPT2), logits(masked, GPT2))
    with model.disable_adapter():
        assert torch.equal(logits(model, GPT2), logits(tiny(GPT2), GPT2))


def test_weights_live_in_all_active_skills_when_several_are(skills):
    model, wirings = skills
    both = in_place(wirings["a"], GPT2)
    wirings["b"].to(both, reset="keep")
    model.base_model.set_adapter(["a", "b"])
    assert torch.equal(logits(model, GPT2), logits(both, GPT2))
    model.merge_adapter(["b"])
    model.merge_adapter(["a"])
    assert torch.equal(logits(model, GPT2), logits(both, GPT2))
    model.unmerge_adapter()
    assert same(
        weights(tiny(GPT2)),
        {n.replace(".base_layer", ""): w for n, w in weights(model.get_base_model()).items()},
    )


def test_merged_skill_is_unmerged_when_disabled(skills):
    model, _ = skills
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model, GPT2), logits(tiny(GPT2), GPT2))


def test_chosen_skill_is_merged_for_good_when_unloaded(skills):
    model, wirings = skills
    plain = model.merge_and_unload(adapter_names=["b"])
    assert not any(isinstance(m, ConnectomeLayer) for m in plain.modules())
    assert same(weights(plain), weights(in_place(wirings["b"], GPT2)))
    assert plain.lm_head.weight is plain.transformer.wte.weight


def test_remaining_skill_is_active_when_the_active_one_is_deleted(skills):
    model, wirings = skills
    with pytest.warns(UserWarning, match="Adapter a was active"):
        model.delete_adapter("a")
    assert torch.equal(logits(model, GPT2), logits(in_place(wirings["b"], GPT2), GPT2))
    assert model.get_model_status().active_adapters == ["b"]
    with pytest.raises(UnsupportedError, match="last connectome"):
        model.delete_adapter("b")


def test_unknown_skill_is_refused(skills):
    model, _ = skills
    for act in (
        model.base_model.set_adapter,
        model.base_model.delete_adapter,
        model.base_model.connectome,
        lambda name: model.merge_adapter([name]),
        lambda name: model.merge_and_unload(adapter_names=[name]),
    ):
        with pytest.raises(UnknownNameError, match=r"unknown adapter 'c'.*Available: a, b"):
            act("c")
    assert model.get_model_status().active_adapters == ["a"]


@pytest.mark.parametrize("name", ["a.b", "training"])
def test_adapter_name_is_refused_when_no_buffer_can_have_it(name):
    host = tiny(GPT2)
    with pytest.raises(ConfigError, match="cannot name an adapter"):
        get_peft_model(host, ConnectomeConfig(inference_mode=True), name)
    assert not any(isinstance(m, ConnectomeLayer) for m in host.modules())


def test_rows_with_skills_of_their_own_are_refused(skills):
    model, _ = skills
    with pytest.raises(UnsupportedError, match="adapter_names in one batch"):
        model(**inputs(GPT2), adapter_names=["a"])


def test_masks_are_in_no_state_dict_and_are_bool(skills):
    model, _ = skills
    assert not any("connectome" in key for key in model.state_dict())
    layer = model.get_base_model().transformer.h[0].attn.c_attn
    assert {m.dtype for m in layer.connectome_masks.values()} == {torch.bool}
    assert repr(layer).startswith("connectome.Linear(")


def test_scope_leaves_out_the_head_when_it_is_wrapped_already():
    host = tiny(GPT2, tie_word_embeddings=False)
    model = get_peft_model(host, ConnectomeConfig(inference_mode=True), "a")
    second = ConnectomeConfig(target_modules="all-linear", inference_mode=True)
    model.add_adapter("b", second)
    assert "lm_head.weight" in model.base_model.connectome("a")
    assert "lm_head.weight" not in model.base_model.connectome("b")


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("MixtralForCausalLM", r"model\.layers\.0\.mlp\.experts\.down_proj"),
        ("ViTForImageClassification", r"vit\.embeddings\.cls_token"),
    ],
)
def test_raw_parameters_are_refused_by_name_when_frozen(architecture, name):
    host = tiny(architecture)
    modules = [type(m) for m in host.modules()]
    with pytest.raises(UnsupportedError, match=f"'{name}'.*is_trainable=True"):
        get_peft_model(host, ConnectomeConfig(inference_mode=True))
    assert [type(m) for m in host.modules()] == modules
    assert all(p.requires_grad for p in host.parameters())


def test_carried_values_are_refused_when_frozen():
    host = tiny(GPT2)
    bias = host.transformer.ln_f.bias.detach()
    connectome = drawn(host).replace(values={"transformer.ln_f.bias": bias})
    connectome.to(host)
    with pytest.raises(UnsupportedError, match=r"transformer\.ln_f\.bias"):
        get_peft_model(host, bound(connectome))


def bound(connectome):
    return BoundConfig.of(connectome, connectome.config, inference_mode=True)


# ---- what PEFT's own classes do ------------------------------------------------------------------


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM", "FEATURE_EXTRACTION"])
@pytest.mark.parametrize("inference_mode", [True, False])
def test_plain_peft_saves_what_our_reader_reads(tmp_path, task_type, inference_mode):
    config = ConnectomeConfig(density=0.25, task_type=task_type, inference_mode=inference_mode)
    model = get_peft_model(tiny(GPT2), config)
    connectome = model.base_model.connectome()
    model.save_pretrained(str(tmp_path / "peft"))
    write(connectome, tmp_path / "ours")
    weights_file = "adapter_model.safetensors"
    peft, ours = ((tmp_path / p / weights_file).read_bytes() for p in ("peft", "ours"))
    assert peft == ours
    again = read(tmp_path / "peft")
    assert again == connectome
    if task_type is None:
        assert again.config.auto_mapping["base_model_class"] == GPT2
        again.config.auto_mapping = None
    assert again.config.to_dict() == read(tmp_path / "ours").config.to_dict()


def test_plain_peft_reads_a_skill(folder):
    host = tiny(GPT2)
    model = PeftModel.from_pretrained(host, str(folder))
    connectome = read(folder)
    assert model.base_model.connectome() == connectome
    assert torch.equal(logits(model, GPT2), logits(in_place(connectome, GPT2), GPT2))
    assert not model.training
    model.load_adapter(str(folder), "again")
    model.load_adapter(str(folder), "again")  # PEFT reads it anew
    model.set_adapter("again")
    assert torch.equal(logits(model, GPT2), logits(in_place(connectome, GPT2), GPT2))


def test_plain_peft_keeps_the_given_weights_when_trainable(folder):
    host = tiny(GPT2)
    model = PeftModel.from_pretrained(host, str(folder), is_trainable=True)
    assert same(weights(host), weights(in_place(read(folder), GPT2)))
    assert model.base_model.connectome() == read(folder)
    assert all(p.requires_grad for p in host.parameters())


def test_auto_peft_loads_base_and_skill(tmp_path):
    host = tiny(GPT2)
    host.save_pretrained(tmp_path / "base")
    for auto, task_type in ((AutoPeftModel, None), (AutoPeftModelForCausalLM, "CAUSAL_LM")):
        base = type(host).from_pretrained(tmp_path / "base")
        config = ConnectomeConfig(density=0.25, task_type=task_type, inference_mode=True)
        model = get_peft_model(base, config)
        target = tmp_path / str(task_type)
        model.save_pretrained(str(target))
        (target / "tokenizer_config.json").unlink(missing_ok=True)
        again = auto.from_pretrained(str(target), local_files_only=True)
        assert torch.equal(logits(again, GPT2), logits(model, GPT2))


def test_several_skills_are_saved_in_folders_by_name(skills, tmp_path):
    model, wirings = skills
    model.save_pretrained(str(tmp_path))
    assert {name: read(tmp_path / name) for name in wirings} == wirings


def test_state_dict_has_the_names_of_the_file():
    model = get_peft_model(tiny(GPT2), ConnectomeConfig(density=0.25))
    state = get_peft_model_state_dict(model)
    assert set(state) == {
        f"{name}.{part}" for name in model.base_model.connectome() for part in ("mask", "sign")
    }
    assert {tensor.dtype for tensor in state.values()} == {torch.uint8}


def test_forward_is_refused_when_a_recorded_config_came_without_its_file(folder):
    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    model = get_peft_model(tiny(GPT2), config)
    for act in (lambda: model(**inputs(GPT2)), lambda: model.generate(**inputs(GPT2))):
        with pytest.raises(ConfigError, match="no masks were loaded"):
            act()
    config = copy.copy(config)
    config.base_fingerprint = None
    logits(get_peft_model(tiny(GPT2), config), GPT2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: s.update({"foreign": torch.zeros(1)}), FormatError, "the tensor 'foreign'"),
        (lambda s: s.update({"x.mask": s[f"{WTE}.mask"]}), HostMismatchError, "wires 'x'"),
        (lambda s: s[f"{WTE}.mask"].zero_(), FormatError, "0 survivors need"),
        (lambda s: s.update({f"{WTE}.sign": s[f"{WTE}.sign"][:-1]}), FormatError, "survivors need"),
        (lambda s: s.pop(f"{WTE}.mask"), FormatError, "no mask for"),
        (lambda s: s.update({"a.mask": torch.zeros(1).bfloat16()}), FormatError, "foreign type"),
        (lambda s: [s.pop(k) for k in list(s) if "wte" in k], HostMismatchError, "another base"),
    ],
)
@pytest.mark.parametrize("trainable", [True, False])
def test_nothing_changes_when_peft_hands_over_a_bad_state_dict(
    folder, change, error, message, trainable
):
    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = not trainable
    host = tiny(GPT2)
    before = weights(host)
    model = get_peft_model(host, config)
    state = get_peft_model_state_dict(PeftModel.from_pretrained(tiny(GPT2), str(folder)))
    change(state)
    with pytest.raises(error, match=message):
        set_peft_model_state_dict(model, state)
    assert same(before, weights(host))
    assert all(p.requires_grad for p in host.parameters())


def test_plain_peft_refuses_a_host_of_other_sizes(folder):
    host = tiny(GPT2, n_embd=16)
    before = weights(host)
    with pytest.raises(HostMismatchError, match=r"in the host, \(32, 96\) in the connectome"):
        PeftModel.from_pretrained(host, str(folder))
    assert same(before, weights(host))


def test_classification_head_is_free_when_peft_asks_for_the_task():
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    host = BertForSequenceClassification(CONFIGS["BertForMaskedLM"]())
    config = ConnectomeConfig(density=0.25, task_type="SEQ_CLS", exclude_modules=["classifier"])
    model = get_peft_model(host, config)
    assert "classifier.weight" not in model.base_model.connectome()
    assert model(**inputs("BertForMaskedLM")).logits.shape == (1, 2)


@pytest.mark.parametrize("trainable", [True, False])
def test_flipped_bit_is_refused_by_peft_s_own_loader(folder, tmp_path, trainable):
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    data = bytearray((damaged / "adapter_model.safetensors").read_bytes())
    data[-1] ^= 1  # a sign: nothing but the digest can tell
    (damaged / "adapter_model.safetensors").write_bytes(data)
    host = tiny(GPT2)
    before = weights(host)
    with pytest.raises(FormatError, match=r"holds the connectome .*config.json describes .*again"):
        PeftModel.from_pretrained(host, damaged, is_trainable=trainable)
    assert same(before, weights(host))


# ---- cards that PEFT writes ----------------------------------------------------------------------


@pytest.fixture
def loaded_base(tmp_path):
    tiny(GPT2).save_pretrained(tmp_path / "base")
    return transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base")


@pytest.mark.parametrize("name", ["default", "skill"])
def test_card_of_peft_names_no_local_base(loaded_base, tmp_path, name):
    settings = ConnectomeConfig(density=0.25, task_type="CAUSAL_LM", inference_mode=True)
    get_peft_model(loaded_base, settings, name).save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "library_name: peft" in card
    assert "- transformers" in card
    assert "base_model" not in card
    assert str(tmp_path) not in card


def test_card_of_peft_keeps_a_base_of_the_hub_and_what_was_written_by_hand(tmp_path):
    host = tiny(GPT2)
    host.name_or_path = host.config._name_or_path = "owner/base"
    model = get_peft_model(host, ConnectomeConfig(density=0.25, inference_mode=True))
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    with pytest.warns(UserWarning, match="Could not find a config file in owner/base"):
        model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "base_model: owner/base" in card
    assert "- base_model:adapter:owner/base" in card
    assert "license: mit" in card
    assert "# Mine" in card


def test_card_is_left_alone_when_the_config_alone_is_saved(tmp_path):
    (tmp_path / "README.md").write_text("---\nbase_model: /a/local/path\n---\n")
    model = get_peft_model(tiny(GPT2), ConnectomeConfig(density=0.25, inference_mode=True))
    model.peft_config["default"].save_pretrained(tmp_path)
    assert "/a/local/path" in (tmp_path / "README.md").read_text()
    assert read(tmp_path) == model.base_model.connectome()


# ---- transformers' own methods; the matrix of them all is in test_peft_conformance.py ------------


def test_failed_second_skill_leaves_the_first_as_it_was(folder):
    host = tiny(GPT2)
    host.add_adapter(BoundConfig.from_pretrained(folder))
    masked = logits(host, GPT2)
    other = tiny("LlamaForCausalLM")
    foreign = BoundConfig.of(drawn(other), drawn(other).config, inference_mode=True)
    with pytest.raises(HostMismatchError, match="has no parameter"):
        host.add_adapter(foreign, "other")
    assert list(host.peft_config) == ["default"]
    assert host.active_adapters() == ["default"]
    assert torch.equal(logits(host, GPT2), masked)
    with pytest.raises(HostMismatchError, match="has no parameter"):
        tiny(GPT2).add_adapter(foreign)


def test_weights_load_by_either_name_when_no_mask_is_left(folder):
    host = tiny(GPT2, seed=1)
    host.add_adapter(BoundConfig.from_pretrained(folder))
    wrapped = {name: tensor.clone() for name, tensor in host.state_dict().items()}
    assert f"{WTE.removesuffix('weight')}base_layer.weight" in wrapped
    host.delete_adapter("default")
    plain = tiny(GPT2).state_dict()
    assert host.state_dict().keys() == plain.keys()
    host.load_state_dict(plain)
    assert torch.equal(logits(host, GPT2), logits(tiny(GPT2), GPT2))
    host.load_state_dict(wrapped)
    assert torch.equal(logits(host, GPT2), logits(tiny(GPT2, seed=1), GPT2))
    with pytest.raises(RuntimeError, match="Missing key"):
        host.load_state_dict({})


def test_bound_config_brings_the_connectome_of_its_folder(folder, tmp_path):
    bound = BoundConfig.from_pretrained(folder.parent, subfolder=folder.name)
    assert bound.connectome == read(folder)
    assert bound.inference_mode
    bound.save_pretrained(tmp_path)
    assert read(tmp_path) == read(folder)
    with pytest.raises(FormatError, match="cannot be a Hub id"):
        BoundConfig.from_pretrained("no/such/folder")


def test_bound_config_asks_for_a_host_when_no_architecture_is_recorded(tmp_path):
    net = nn.Sequential(nn.Linear(4, 3))
    write(drawn(net, density=0.5), tmp_path)
    with pytest.raises(ConfigError, match="records no architecture"):
        BoundConfig.from_pretrained(tmp_path)
    assert BoundConfig.from_pretrained(tmp_path, host=net).connectome.names == ("0.weight",)


@pytest.mark.parametrize("targets", [["embed_tokens"], r".*(embed_tokens|q_proj)"])
def test_saving_is_refused_when_peft_would_add_embeddings(tmp_path, targets):
    host = tiny("LlamaForCausalLM")
    settings = ConnectomeConfig(density=0.5, target_modules=targets, inference_mode=True)
    host.add_adapter(settings)
    with pytest.raises(UnsupportedError, match=r"peft_config\['default'\]\.save_pretrained"):
        host.save_pretrained(tmp_path)
    assert not (tmp_path / "adapter_model.safetensors").exists()
    host.peft_config["default"].save_pretrained(tmp_path)
    assert read(tmp_path) == host.peft_config["default"].connectome


@pytest.mark.parametrize("inference_mode", [True, False])
def test_weights_that_are_not_in_memory_are_refused(inference_mode):
    with torch.device("meta"):
        host = nn.Sequential(nn.Linear(4, 3))
    bound = BoundConfig.of(
        drawn(nn.Sequential(nn.Linear(4, 3))), ConnectomeConfig(), inference_mode=inference_mode
    )
    with pytest.raises(
        UnsupportedError, match=r"the weights '0\.weight', '0\.bias' are on the meta"
    ):
        get_peft_model(host, bound)
    assert type(host[0]) is nn.Linear


def test_other_methods_are_not_mixed_in(folder):
    from peft import LoraConfig

    model = PeftModel.from_pretrained(tiny(GPT2), str(folder))
    with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
        model.add_adapter("other", LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    with pytest.raises(ValueError, match="not compatible with the `PeftMixedModel`"):
        get_peft_model(tiny(GPT2), ConnectomeConfig(), mixed=True)


def test_any_module_takes_a_skill():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv1d(2, 3, 3)
            self.same = self.first
            self.last = nn.Linear(3, 2)

        def forward(self, x):
            return self.last(self.same(self.first(x)[:, :2]).mean(-1))

    torch.manual_seed(0)
    net = Net()
    twin = copy.deepcopy(net)
    model = get_peft_model(net, ConnectomeConfig(density=0.5, inference_mode=True))
    model.base_model.connectome().to(twin, reset="keep")
    x = torch.linspace(-1, 1, 20).reshape(1, 2, 10)
    assert net.same is net.first
    assert torch.equal(model(x), twin(x))


def test_saving_a_skill_of_a_plain_module_round_trips(tmp_path):
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    model = ConnectomeModel(net, ConnectomeConfig(density=0.5, inference_mode=True))
    model.save_pretrained(tmp_path)
    plain = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    again = ConnectomeModel.from_pretrained(plain, tmp_path)
    assert again.connectome == model.connectome
    with pytest.raises(ConfigError, match="records no architecture"):
        Connectome.from_pretrained(tmp_path)
