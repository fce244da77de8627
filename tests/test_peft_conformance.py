"""Every way in of PEFT and transformers, on six architectures; docs/ENTRY_POINTS.md is its table.

A check is named as its row is. It runs once a host and mode: where the table says yes it must
work, where it says no it must be refused with nothing changed.
"""

from __future__ import annotations

import copy
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
import transformers
from peft.utils.hotswap import hotswap_adapter
from tiny import KINDS, same, state_of, tiny_model
from tiny_hosts import inputs, logits

from hf_connectome.adapter import draw
from hf_connectome.bound import BoundConfig
from hf_connectome.config import ConnectomeConfig
from hf_connectome.errors import UnsupportedError
from hf_connectome.modeling import ConnectomeModel
from hf_connectome.skills import ConnectomeLayer
from hf_connectome.storage import CONFIG_FILE, WEIGHTS_FILE, read, write

FROZEN, IN_PLACE = "frozen", "in place"
MODES = (FROZEN, IN_PLACE)
TABLE = Path(__file__).parent.parent / "docs" / "ENTRY_POINTS.md"
CAUSAL = ("gpt2", "llama", "mixtral")
SLOW = ("llama", "bert", "torch.compile(model)")
"""Left out by `make test`: GPT-2, T5, ViT and Mixtral have all that these hosts have."""
# A frozen skill wraps modules, so raw parameters (class tokens, fused experts) stay out of scope.
SCOPE = {"vit": {"exclude_modules": ["embeddings"]}, "mixtral": {"target_modules": "all-linear"}}

CHECKS = {}
"""Row of the table -> (check, modes in which it works, modes in which it is refused, hosts)."""


def entry(row, *, works=(), refused=(), kinds=tuple(KINDS)):
    def register(check):
        assert row not in CHECKS
        CHECKS[row] = (check, works, refused, kinds)
        return check

    return register


class Stored:
    """A connectome in a folder, and what it and its base must compute."""

    def __init__(self, kind, folder):
        self.folder, self.base = folder, tiny_model(kind)
        write(draw(self.base, config_for(kind)), folder)
        self.connectome = read(folder)
        self.dense = logits(self.base, KINDS[kind])
        twin = tiny_model(kind)
        self.connectome.to(twin, reset="keep")
        self.masked, self.masked_state = logits(twin, KINDS[kind]), state_of(twin)


class Case:
    """One host and one mode, with fresh models to try."""

    def __init__(self, kind, mode, tmp_path, stored):
        self.kind, self.mode, self.tmp_path = kind, mode, tmp_path
        self.trainable = mode == IN_PLACE
        self.base, self.folder, self.connectome = stored.base, stored.folder, stored.connectome
        self.dense, self.masked = stored.dense, stored.masked
        self.masked_state = stored.masked_state

    def host(self):
        return copy.deepcopy(self.base)

    def logits(self, model):
        return logits(model, KINDS[self.kind])

    def config(self, **changes):
        return config_for(self.kind, inference_mode=not self.trainable, **changes)

    def bound(self):
        bound = BoundConfig.from_pretrained(self.folder)
        bound.inference_mode = not self.trainable
        return bound

    def model(self, host=None):
        """Load by PEFT's own class, which is what most code that is not ours has."""
        host = self.host() if host is None else host
        model = peft.PeftModel.from_pretrained(host, self.folder, is_trainable=self.trainable)
        return model.eval()

    def is_masked(self, model):
        return torch.equal(self.logits(model), self.masked)

    def is_dense(self, model):
        return torch.equal(self.logits(model), self.dense)

    def saved_base(self):
        self.host().save_pretrained(self.tmp_path / "base")
        return getattr(transformers, KINDS[self.kind]).from_pretrained(self.tmp_path / "base")

    def refuses(self, act, match, model=None, error=UnsupportedError):
        """Check that ``act`` raises and leaves the model as it is."""
        model = self.host() if model is None else model
        before, modules = state_of(model), [type(m) for m in model.modules()]
        notes = (
            getattr(model, "_hf_peft_config_loaded", None),
            dict(getattr(model, "peft_config", {})),
        )
        trains = [p.requires_grad for p in model.parameters()]
        with pytest.raises(error, match=match):
            act(model)
        assert same(before, state_of(model))
        assert [type(m) for m in model.modules()] == modules
        assert [p.requires_grad for p in model.parameters()] == trains
        assert notes == (
            getattr(model, "_hf_peft_config_loaded", None),
            dict(getattr(model, "peft_config", {})),
        )


def config_for(kind, **changes):
    settings = {"density": 0.5, "seed": 3, **SCOPE.get(kind, {}), **changes}
    return ConnectomeConfig(**settings)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return {kind: Stored(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


# ---- PEFT: getting one ---------------------------------------------------------------------------


@entry("PeftConfig.from_pretrained(path)", works=MODES)
def _(case):
    config = peft.PeftConfig.from_pretrained(case.folder)
    assert type(config) is ConnectomeConfig
    assert config.to_dict() == case.connectome.config.to_dict()


@entry("get_peft_model(model, ConnectomeConfig(...))", works=MODES)
def _(case):
    host = case.host()
    model = peft.get_peft_model(host, case.config())
    assert model.base_model.connectome() == case.connectome
    assert case.is_masked(model.eval())
    wrapped = any(isinstance(m, ConnectomeLayer) for m in host.modules())
    assert wrapped == (case.mode == FROZEN)
    assert any(p.requires_grad for p in host.parameters()) == case.trainable


@entry("PeftModel.from_pretrained(model, path)", works=MODES)
def _(case):
    model = case.model()
    assert model.base_model.connectome() == case.connectome
    assert case.is_masked(model)


@entry("AutoPeftModel.from_pretrained(path)", works=MODES)
def _(case):
    peft.get_peft_model(case.saved_base(), case.config()).save_pretrained(case.tmp_path / "skill")
    model = peft.AutoPeftModel.from_pretrained(
        str(case.tmp_path / "skill"), is_trainable=case.trainable, local_files_only=True
    )
    assert type(model.get_base_model()).__name__ == KINDS[case.kind]
    assert case.is_masked(model.eval())


@entry("AutoPeftModelForCausalLM.from_pretrained(path)", works=MODES, kinds=CAUSAL)
def _(case):
    made = peft.get_peft_model(case.saved_base(), case.config(task_type="CAUSAL_LM"))
    made.save_pretrained(case.tmp_path / "skill")
    model = peft.AutoPeftModelForCausalLM.from_pretrained(
        str(case.tmp_path / "skill"), is_trainable=case.trainable, local_files_only=True
    )
    assert type(model) is peft.PeftModelForCausalLM
    assert case.is_masked(model.eval())


@entry("ConnectomeModel.from_pretrained(model, path)", works=MODES)
def _(case):
    model = ConnectomeModel.from_pretrained(case.host(), case.folder, is_trainable=case.trainable)
    assert case.is_masked(model.eval())


@entry("inject_adapter_in_model(config, model)", works=[FROZEN], refused=[IN_PLACE])
def _(case):
    if case.mode == IN_PLACE:
        for config in (case.config(), case.bound()):
            case.refuses(lambda m, c=config: peft.inject_adapter_in_model(c, m), "get_peft_model")
        return
    assert case.is_masked(peft.inject_adapter_in_model(case.config(), case.host()))


@entry("get_peft_model(..., mixed=True)", refused=MODES)
def _(case):
    case.refuses(
        lambda model: peft.get_peft_model(model, case.config(), mixed=True),
        "'CONNECTOME' is not compatible with the `PeftMixedModel`",
        error=ValueError,
    )


@entry("modules_to_save", refused=MODES)
def _(case):
    case.refuses(
        lambda model: peft.get_peft_model(model, case.config(modules_to_save=["lm_head"])),
        "modules_to_save",
        error=TypeError,
    )


@entry("low_cpu_mem_usage=True", works=MODES)
def _(case):
    model = peft.PeftModel.from_pretrained(
        case.host(), case.folder, is_trainable=case.trainable, low_cpu_mem_usage=True
    )
    assert case.is_masked(model.eval())


@entry("ephemeral_gpu_offload=True", works=MODES)
def _(case):
    with pytest.warns(UserWarning, match="Ephemeral GPU offloading is not supported"):
        model = peft.PeftModel.from_pretrained(
            case.host(), case.folder, is_trainable=case.trainable, ephemeral_gpu_offload=True
        )
    assert case.is_masked(model.eval())


# ---- PEFT: having one ----------------------------------------------------------------------------


@entry("model.add_adapter(name, config) of a PeftModel", works=[FROZEN], refused=[IN_PLACE])
def _(case):
    model = case.model()
    other = case.config(seed=4)
    if case.mode == IN_PLACE:
        case.refuses(lambda m: m.add_adapter("other", other), "is in place", model)
        return
    model.add_adapter("other", other)
    assert case.is_masked(model)
    model.set_adapter("other")
    assert not case.is_masked(model)
    assert not case.is_dense(model)


@entry("model.load_adapter(path, name) of a PeftModel", works=[FROZEN], refused=[IN_PLACE])
def _(case):
    if case.mode == IN_PLACE:
        case.refuses(lambda m: m.load_adapter(case.folder, "other"), "is in place", case.model())
        return
    model = peft.get_peft_model(case.host(), case.config(seed=4)).eval()
    model.load_adapter(case.folder, "other")
    assert not case.is_masked(model)
    model.set_adapter("other")
    assert case.is_masked(model)


@entry("model.set_adapter(name) of a PeftModel", works=MODES)
def _(case):
    model = case.model()
    model.set_adapter("default")
    assert case.is_masked(model)
    if case.mode == FROZEN:
        model.add_adapter("other", case.config(seed=4))
        for name in ("other", "default", "other", "default"):
            model.set_adapter(name)
            assert case.is_masked(model) == (name == "default")


@entry("with model.disable_adapter()", works=[FROZEN], refused=[IN_PLACE])
def _(case):
    model = case.model()
    if case.mode == IN_PLACE:
        case.refuses(lambda m: m.disable_adapter().__enter__(), "dead weights are gone", model)
        assert case.is_masked(model)
        return
    with model.disable_adapter():
        assert case.is_dense(model)
    assert case.is_masked(model)


@entry("model.merge_adapter()", works=MODES)
def _(case):
    model = case.model()
    model.merge_adapter()
    assert case.is_masked(model)


@entry("model.unmerge_adapter()", works=[FROZEN], refused=[IN_PLACE])
def _(case):
    host = case.host()
    model = case.model(host)
    if case.mode == IN_PLACE:
        case.refuses(lambda m: m.unmerge_adapter(), "dead weights are gone", model)
        return
    model.merge_adapter()
    model.unmerge_adapter()
    assert case.is_masked(model)
    with model.disable_adapter():
        assert case.is_dense(model)


@entry("model.merge_and_unload()", works=MODES)
def _(case):
    host = case.host()
    plain = case.model(host).merge_and_unload()
    assert plain is host
    assert same(state_of(plain), case.masked_state)
    assert not hasattr(plain, "peft_config")
    assert case.is_masked(plain)


@entry("model.unload()", works=[FROZEN], refused=[IN_PLACE])
def _(case):
    host = case.host()
    before = state_of(host)
    model = case.model(host)
    if case.mode == IN_PLACE:
        case.refuses(lambda m: m.unload(), "dead weights are gone", model)
        return
    assert model.unload() is host
    assert same(before, state_of(host))
    assert case.is_dense(host)


@entry("model.delete_adapter(name) of a PeftModel", works=[FROZEN], refused=[IN_PLACE])
def _(case):
    model = case.model()
    if case.mode == IN_PLACE:
        case.refuses(lambda m: m.delete_adapter("default"), "dead weights are gone", model)
        return
    model.add_adapter("other", case.config(seed=4))
    model.delete_adapter("other")
    assert list(model.peft_config) == ["default"]
    assert case.is_masked(model)
    case.refuses(lambda m: m.delete_adapter("default"), r"last connectome. Call unload\(\)", model)


@entry("model.add_weighted_adapter(...)", refused=MODES)
def _(case):
    case.refuses(
        lambda m: m.add_weighted_adapter(["default"], [1.0], "mean"), "a & b", case.model()
    )


@entry("hotswap_adapter(model, path, name)", refused=MODES)
def _(case):
    case.refuses(
        lambda m: hotswap_adapter(m, str(case.folder), "default"),
        "CONNECTOME was passed",
        case.model(),
        ValueError,
    )


@entry("adapter_names=[...] in forward", refused=MODES)
def _(case):
    case.refuses(
        lambda m: m(**inputs(KINDS[case.kind]), adapter_names=["default"]),
        "adapter_names in one batch",
        case.model(),
    )


@entry("model.get_layer_status(), get_model_status()", works=MODES)
def _(case):
    model = case.model()
    layers, status = model.get_layer_status(), model.get_model_status()
    assert (status.enabled, status.active_adapters) == (True, ["default"])
    assert status.available_adapters == ["default"]
    assert status.peft_types == {"default": "CONNECTOME"}
    if case.mode == IN_PLACE:
        assert [layer.module_type for layer in layers] == ["connectome.InPlace"]
        assert status.merged_adapters == ["default"]
        return
    assert status.num_adapter_layers == len(layers) >= len(case.connectome)
    assert status.merged_adapters == []
    assert status.trainable_params == 0
    model.merge_adapter()
    assert model.get_model_status().merged_adapters == ["default"]


@entry("model.save_pretrained(folder) of a PeftModel", works=MODES)
def _(case):
    model = case.model(case.saved_base())
    model.save_pretrained(case.tmp_path / "saved")
    saved = case.tmp_path / "saved"
    assert sorted(f.name for f in saved.iterdir()) == ["README.md", CONFIG_FILE, WEIGHTS_FILE]
    assert (saved / WEIGHTS_FILE).read_bytes() == (case.folder / WEIGHTS_FILE).read_bytes()
    assert read(saved) == case.connectome
    assert str(case.tmp_path) not in (saved / "README.md").read_text()


@entry("get_peft_model_state_dict, set_peft_model_state_dict", works=MODES)
def _(case):
    state = peft.get_peft_model_state_dict(case.model())
    assert {name.rpartition(".")[0] for name in state} == set(case.connectome)
    config = peft.PeftConfig.from_pretrained(case.folder)
    config.inference_mode = not case.trainable
    other = peft.get_peft_model(case.host(), config).eval()
    peft.set_peft_model_state_dict(other, state)
    assert other.base_model.connectome() == case.connectome
    assert case.is_masked(other)


# ---- transformers' own methods -------------------------------------------------------------------


@entry("model.add_adapter(config)", works=[FROZEN], refused=[IN_PLACE])
def _(case):
    if case.mode == IN_PLACE:
        case.refuses(lambda m: m.add_adapter(case.config()), "get_peft_model")
        return
    host = case.host()
    host.add_adapter(case.config())
    assert host.peft_config["default"].connectome == case.connectome
    assert case.is_masked(host)


@entry("model.add_adapter(BoundConfig.from_pretrained(path))", works=[FROZEN], refused=[IN_PLACE])
def _(case):
    if case.mode == IN_PLACE:
        case.refuses(lambda m: m.add_adapter(case.bound()), "is_trainable=True")
        host = case.host()
        host.add_adapter(BoundConfig.from_pretrained(case.folder))
        case.refuses(lambda m: m.add_adapter(case.bound(), "other"), "is_trainable=True", host)
        return
    host = case.host()
    host.add_adapter(BoundConfig.from_pretrained(case.folder.parent, case.folder.name))
    assert case.is_masked(host)
    with pytest.raises(ValueError, match="default already exists"):
        host.add_adapter(case.bound())
    assert case.is_masked(host)


@entry("model.load_adapter(path)", refused=MODES)
def _(case):
    case.refuses(
        lambda m: m.load_adapter(case.folder, is_trainable=case.trainable),
        r"this file is packed. Use model.add_adapter\(BoundConfig",
    )


@entry(
    "model.load_adapter(peft_config=config, adapter_state_dict={})",
    works=[FROZEN],
    refused=[IN_PLACE],
)
def _(case):
    def load(model):
        return model.load_adapter(
            peft_config=case.bound(), adapter_state_dict={}, is_trainable=case.trainable
        )

    if case.mode == IN_PLACE:
        case.refuses(load, "frozen skills only")
        return
    host = case.host()
    report = load(host)
    assert not report.missing_keys
    assert not report.unexpected_keys
    assert case.is_masked(host)


@entry("AutoModelForCausalLM.from_pretrained(path)", refused=MODES, kinds=CAUSAL)
def _(case):
    peft.get_peft_model(case.saved_base(), case.config()).save_pretrained(case.tmp_path / "skill")
    with pytest.raises(UnsupportedError, match="this file is packed"):
        transformers.AutoModelForCausalLM.from_pretrained(case.tmp_path / "skill")


def two_skills(case):
    host = case.host()
    host.add_adapter(case.bound())
    host.add_adapter(case.config(seed=4), "other")
    return host


@entry("model.set_adapter(name), active_adapters()", works=[FROZEN])
def _(case):
    host = two_skills(case)
    assert host.active_adapters() == ["other"]
    for name in ("default", "other", "default"):
        host.set_adapter(name)
        assert host.active_adapters() == [name]
        assert case.is_masked(host) == (name == "default")
    host.set_adapter(["default", "other"])
    both = case.host()
    for config in host.peft_config.values():
        config.connectome.to(both, reset="keep")
    assert torch.equal(case.logits(host), case.logits(both))


@entry("model.disable_adapters(), enable_adapters()", works=[FROZEN])
def _(case):
    host = case.host()
    host.add_adapter(case.bound())
    host.disable_adapters()
    assert case.is_dense(host)
    host.enable_adapters()
    assert case.is_masked(host)


@entry("model.delete_adapter(name)", works=[FROZEN])
def _(case):
    host = two_skills(case)
    host.set_adapter("default")
    host.delete_adapter("other")
    assert list(host.peft_config) == ["default"]
    assert case.is_masked(host)
    host.delete_adapter("default")
    assert case.is_dense(host)
    assert not host._hf_peft_config_loaded
    assert same(state_of(host), state_of(case.host()))
    host.load_state_dict(case.masked_state)
    assert case.is_masked(host)
    host.save_pretrained(case.tmp_path)
    again = type(host).from_pretrained(case.tmp_path)
    assert case.is_masked(again)


@entry("model.get_adapter_state_dict()", works=[FROZEN])
def _(case):
    host = case.host()
    host.add_adapter(case.bound())
    assert host.get_adapter_state_dict() == {}


@entry("model.save_pretrained(folder) with an adapter", works=[FROZEN])
def _(case):
    host = two_skills(case)
    host.set_adapter("default")
    host.save_pretrained(case.tmp_path)
    assert read(case.tmp_path) == case.connectome
    names = {CONFIG_FILE, WEIGHTS_FILE, "generation_config.json"}
    assert {f.name for f in case.tmp_path.iterdir()} <= names


@entry('device_map="cpu"', works=MODES)
def _(case):
    case.saved_base()
    host = getattr(transformers, KINDS[case.kind]).from_pretrained(
        case.tmp_path / "base", device_map="cpu"
    )
    assert case.is_masked(case.model(host))


@entry("device_map with offloaded weights", refused=MODES)
def _(case):
    case.saved_base()
    kind = getattr(transformers, KINDS[case.kind])
    try:
        host = kind.from_pretrained(
            case.tmp_path / "base", device_map={"": "disk"}, offload_folder=case.tmp_path / "off"
        )
    except ValueError as error:  # older releases do not offload a whole model themselves
        pytest.skip(str(error))
    assert next(host.parameters()).is_meta
    with pytest.raises(UnsupportedError, match=r"on the meta device .*device_map='cpu'"):
        case.model(host)


# ---- torch ---------------------------------------------------------------------------------------


@entry("copy.deepcopy(model)", works=MODES)
def _(case):
    model = case.model()
    twin = copy.deepcopy(model)
    assert case.is_masked(twin)
    assert twin.base_model.connectome() == case.connectome
    if case.mode == FROZEN:
        with twin.disable_adapter():
            assert case.is_dense(twin)
            assert case.is_masked(model)


@entry("pickle, torch.save(model)", works=[FROZEN], refused=[IN_PLACE])
def _(case):
    if case.mode == IN_PLACE:
        with pytest.raises((AttributeError, pickle.PicklingError), match="_gradient_hook"):
            pickle.dumps(case.model())
        return
    twin = pickle.loads(pickle.dumps(case.model()))  # noqa: S301 (our own bytes)
    assert case.is_masked(twin)
    with twin.disable_adapter():
        assert case.is_dense(twin)


@entry("model.state_dict()", works=MODES)
def _(case):
    host = case.host()
    weights = state_of(host) if case.mode == FROZEN else case.masked_state
    found = state_of(case.model(host))
    bare = {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): tensor
        for name, tensor in found.items()
    }
    assert same(bare, weights)
    assert (found.keys() == {f"base_model.model.{n}" for n in weights}) == case.trainable


@entry("gradient checkpointing", works=MODES)
def _(case):
    def gradients(*, checkpointing):
        model = case.model().train()
        if checkpointing:
            base = model.get_base_model()
            old_name = getattr(base, "gradient_checkpointing_enable", None)
            getattr(base, "activation_checkpointing_enable", old_name)()
        for parameter in model.parameters():
            parameter.requires_grad_()
        torch.manual_seed(0)
        model(**inputs(KINDS[case.kind])).logits.square().mean().backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    plain, saved = gradients(checkpointing=False), gradients(checkpointing=True)
    assert plain.keys() == saved.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(saved[name], gradient)


@entry("torch.compile(model)", works=MODES, kinds=("gpt2",))
def _(case):
    host = case.host()
    case.model(host)
    compiled = torch.compile(host, backend="eager")
    assert torch.equal(case.logits(compiled), case.masked)


# ---- the matrix ----------------------------------------------------------------------------------


def marks_of(row, kind):
    return [pytest.mark.slow] if {row, kind} & set(SLOW) else []


@pytest.mark.filterwarnings("ignore:Some parameters are on the meta device")
@pytest.mark.parametrize(
    ("row", "mode", "kind"),
    [
        pytest.param(row, mode, kind, id=f"{row}-{mode}-{kind}", marks=marks_of(row, kind))
        for row, (_, works, refused, kinds) in CHECKS.items()
        for mode in MODES
        for kind in kinds
        if mode in (*works, *refused)
    ],
)
def test_entry_point_does_what_the_table_says(row, mode, kind, tmp_path, stored):
    CHECKS[row][0](Case(kind, mode, tmp_path, stored[kind]))


def test_table_of_the_documentation_has_the_rows_of_the_matrix():
    rows = re.findall(
        r"^\| `(.+?)` \| (yes|no|-) \| (yes|no|-) \| (.*)\|$", TABLE.read_text(), re.M
    )
    documented = {row: (frozen, in_place) for row, frozen, in_place, _ in rows}
    assert len(rows) == len(documented)

    def cell(check, mode):
        _, works, refused, _ = check
        return "yes" if mode in works else "no" if mode in refused else "-"

    assert documented == {row: tuple(cell(c, m) for m in MODES) for row, c in CHECKS.items()}
    assert [row for row, *cells, reason in rows if "no" in cells and not reason.strip()] == []


# ---- without this package ------------------------------------------------------------------------


def test_without_this_package_a_trained_model_loads_and_peft_names_the_method(stored, tmp_path):
    trained, adapter = tmp_path / "trained", stored["gpt2"].folder
    ConnectomeModel.from_pretrained(adapter).merge_and_unload().save_pretrained(trained)
    shutil.copytree(adapter, trained / "connectome")
    code = f"""
import peft, sys, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained({str(trained)!r})
print(int((model.transformer.wte.weight == 0).sum()))
for load in (
    lambda: peft.PeftConfig.from_pretrained({str(adapter)!r}),
    lambda: peft.PeftModel.from_pretrained(model, {str(adapter)!r}),
    lambda: model.load_adapter({str(adapter)!r}),
):
    try:
        load()
    except KeyError as error:
        print(repr(error))
print("hf_connectome" in sys.modules)
from hf_connectome.adapter import BoundConfig
model.add_adapter(BoundConfig.from_pretrained({str(adapter)!r}))
print(model.active_adapters()[0])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    entry = stored["gpt2"].connectome["transformer.wte.weight"]
    dead = str(entry.num_weights - entry.num_survivors)
    assert run.stdout.split() == [dead, *["KeyError('CONNECTOME')"] * 3, "False", "default"]
