"""Checkpoints of others become connectomes; what cannot be told apart is refused."""

from __future__ import annotations

import argparse
import json
import zipfile

import numpy as np
import pytest
import torch
from tiny import KINDS, drawn, tiny_model
from torch import nn

from hf_connectome import conversion, storage
from hf_connectome.errors import ConfigError, FormatError, ScopeError
from hf_connectome.hosts import wire
from hf_connectome.modeling import ConnectomeModel
from hf_connectome.scope import parameters_of

# ---- a trained sparse checkpoint -----------------------------------------------------------------


def sparse_checkpoint(folder, kind="gpt2", density=0.5, **options):
    """Save a model with zeros in place; return the connectome that it was wired by."""
    model = tiny_model(kind)
    connectome = drawn(model, density=density)
    wire(model, connectome, reset="sign_constant")
    model.save_pretrained(folder, **options)
    return connectome


@pytest.mark.parametrize("kind", KINDS)
def test_wiring_is_read_back_from_the_zeros_of_a_checkpoint(kind, tmp_path):
    wired = sparse_checkpoint(tmp_path, kind)
    found = conversion.from_checkpoint(tmp_path)
    assert found == wired
    assert found.config.architecture == KINDS[kind]


def test_what_was_read_from_a_checkpoint_can_be_stored_and_put_on_a_fresh_model(tmp_path):
    wired = sparse_checkpoint(tmp_path / "checkpoint")
    storage.write(conversion.from_checkpoint(tmp_path / "checkpoint"), tmp_path / "c")
    model = ConnectomeModel.from_pretrained(tmp_path / "c", seed=0)
    assert model.connectome == wired
    weight = model.get_base_model().transformer.wte.weight
    assert set(weight.abs().unique().tolist()) == {0.0, torch.tensor(0.02).item()}


def test_shards_give_the_same_connectome_as_one_file(tmp_path):
    wired = sparse_checkpoint(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert conversion.from_checkpoint(tmp_path) == wired


def test_bfloat16_weights_keep_their_zeros_and_signs(tmp_path):
    model = tiny_model("llama")
    wired = drawn(model)
    wire(model, wired, reset="fresh_magnitude")
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    assert conversion.from_checkpoint(tmp_path) == wired


def test_scope_and_exclusions_decide_which_zeros_count(tmp_path):
    sparse_checkpoint(tmp_path)
    body = conversion.from_checkpoint(tmp_path, scope="body")
    assert not any("wte" in name or "wpe" in name for name in body)
    without = conversion.from_checkpoint(tmp_path, exclude=["wpe", "c_fc"])
    assert {n for n in conversion.from_checkpoint(tmp_path) if n not in without} == {
        "transformer.wpe.weight",
        "transformer.h.0.mlp.c_fc.weight",
        "transformer.h.1.mlp.c_fc.weight",
    }


def test_dense_checkpoint_is_refused_unless_allowed(tmp_path):
    tiny_model("gpt2").save_pretrained(tmp_path)
    with pytest.raises(
        ConfigError, match=r"is dense: 28704 of 28704 .* \(100\.00%\).*--allow-dense"
    ):
        conversion.from_checkpoint(tmp_path)
    assert conversion.from_checkpoint(tmp_path, allow_dense=True).density == 1.0


def test_parameter_without_a_weight_is_refused_with_the_way_out(tmp_path):
    model = tiny_model("gpt2")
    wire(model, drawn(model, density=0.5))
    with torch.no_grad():
        model.transformer.wpe.weight.zero_()
    model.save_pretrained(tmp_path)
    with pytest.raises(ScopeError, match=r"'transformer\.wpe\.weight' would keep none .*exclude"):
        conversion.from_checkpoint(tmp_path)
    assert len(conversion.from_checkpoint(tmp_path, exclude="transformer.wpe")) == 9


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.transformer.wte.weight[0, 0] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(FormatError, match=r"'transformer\.wte\.weight' has values that are not"):
        conversion.from_checkpoint(tmp_path)


def edit_json(file, **changes):
    fields = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": None}, "has architectures=None; expected the model's class"),
        ({"architectures": ["os.system"]}, "no model class of transformers"),
        ({"architectures": ["LlamaForCausalLM"]}, "does not take a GPT2Config"),
        ({"quantization_config": {"bits": 4}}, "is quantised"),
        ({"n_embd": 64}, "cannot be loaded as GPT2LMHeadModel"),
        ({"n_layer": 3}, r"no weights for 'transformer\.h\.2.* they would be random"),
    ],
)
def test_config_that_does_not_fit_the_weights_is_refused(tmp_path, changes, message):
    sparse_checkpoint(tmp_path)
    edit_json(tmp_path / "config.json", **changes)
    with pytest.raises((FormatError, ConfigError), match=message):
        conversion.from_checkpoint(tmp_path)


def test_remote_code_that_a_config_names_is_not_looked_for(tmp_path):
    wired = sparse_checkpoint(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    edit_json(tmp_path / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})
    assert conversion.from_checkpoint(tmp_path) == wired


def test_pickled_weights_are_not_read(tmp_path):
    sparse_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(FormatError, match=r"has no model\.safetensors .*Pickled weights"):
        conversion.from_checkpoint(tmp_path)


def test_truncated_weights_are_refused(tmp_path):
    sparse_checkpoint(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FormatError, match="cannot be loaded as GPT2LMHeadModel"):
        conversion.from_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ({"a": "../other/model.safetensors"}, "expected files of the same folder"),
        ({"a": 3}, "names 3; expected files"),
        ({"a": "model-2.safetensors"}, r"has no 'model-2\.safetensors'"),
        (None, "names None; expected files"),
    ],
)
def test_index_that_leads_elsewhere_is_refused(tmp_path, shards, message):
    sparse_checkpoint(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(FormatError, match=message):
        conversion.from_checkpoint(tmp_path)


# ---- the published code's checkpoint -------------------------------------------------------------


class Block(nn.Module):
    """Linear layers under the published names; norms have no weights there."""

    def __init__(self, width, heads):
        super().__init__()
        self.attn = nn.Module()
        self.attn.c_attn = nn.Linear(width, 3 * width, bias=False)
        self.attn.c_proj = nn.Linear(width, width, bias=False)
        self.attn.rotary = nn.Module()
        self.attn.rotary.register_buffer("inv_freq", torch.ones(width // heads // 2))
        self.mlp = nn.Module()
        self.mlp.c_fc = nn.Linear(width, 4 * width, bias=False)
        self.mlp.c_proj = nn.Linear(4 * width, width, bias=False)


class Published(nn.Module):
    """The state dict of the published model, small: untied, rotary, no biases, no positions."""

    def __init__(self, vocabulary=40, width=8, layers=2, heads=2):
        super().__init__()
        torch.manual_seed(0)
        blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(vocabulary, width), "h": blocks})
        self.lm_head = nn.Linear(width, vocabulary, bias=False)


def published_content(*, prefix="", weights_key="weights"):
    """Prune twice as the published code does: what is dropped last keeps its value."""
    model = Published()
    masks = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    for _ in range(2):
        for name, parameter in model.named_parameters():
            kept = parameter.data.abs()[masks[name].bool()]
            threshold = torch.topk(kept, int(0.2 * kept.numel()), largest=False).values[-1]
            masks[name][(parameter.data.abs() < threshold) & masks[name].bool()] = 0.0
            survivors = masks[name].bool()
            parameter.data[survivors] = parameter.data[survivors].sign() * 0.02
            parameter.data[survivors] *= torch.rand(int(survivors.sum())) + 0.5  # some training
    for name, parameter in model.named_parameters():
        survivors = masks[name].bool()
        parameter.data[survivors] = parameter.data[survivors].sign() * 0.02
    content = {
        weights_key: {prefix + name: value for name, value in model.state_dict().items()},
        "iteration": 7000,
        "tokens": 3_670_016_000,
        "best_val_loss": np.float64(3.4),  # as numpy.mean gives it
        "cfg": {
            "block_size": 32,
            "n_head": 2,
            "n_embd": 8,
            "model_type": "GenerationalPruning.GPT",
        },
        "args": argparse.Namespace(prune_pct=0.2, run_name="x"),
        "mask": masks,
    }
    return content, model


def saved(folder, content, name="model_generation_5.pt"):
    torch.save(content, folder / name)
    return folder / name


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("weights_key", ["weights", "model_state_dict"])
def test_published_mask_and_signs_arrive_on_gpt2s_names_and_orientation(
    tmp_path, prefix, weights_key
):
    content, model = published_content(prefix=prefix, weights_key=weights_key)
    found = conversion.from_published(saved(tmp_path, content))
    assert sorted(found) == sorted(content["mask"])
    for name, parameter in model.named_parameters():
        mask, sign = content["mask"][name].bool(), parameter.detach().sign().to(torch.int8)
        if ".h." in name:  # GPT-2 stores these as Conv1D, transposed
            mask, sign = mask.T, sign.T
        assert torch.equal(found.mask(name), mask), name
        assert torch.equal(found.sign(name), sign * mask), name
    assert found.config.generation == 6
    assert found.config.architecture == "GPT2LMHeadModel"


def test_published_mask_decides_where_dropped_weights_are_not_zero(tmp_path):
    content, model = published_content()
    left = {n: (p != 0) & ~content["mask"][n].bool() for n, p in model.named_parameters()}
    assert sum(int(x.sum()) for x in left.values()) > 100
    found = conversion.from_published(saved(tmp_path, content))
    kept = sum(int(mask.sum()) for mask in content["mask"].values())
    assert found.num_survivors == kept


def test_published_survivor_of_value_zero_is_positive(tmp_path):
    content, _ = published_content()
    content["mask"]["lm_head.weight"][0, 0] = 1.0
    content["weights"]["lm_head.weight"][0, 0] = 0.0
    found = conversion.from_published(saved(tmp_path, content))
    assert found.sign("lm_head.weight")[0, 0] == 1


def test_published_file_becomes_a_repository_that_a_fresh_gpt2_takes(tmp_path):
    content, _ = published_content()
    found, kind = conversion.open_any(saved(tmp_path, content))
    assert kind == "checkpoint of the published code"
    storage.write(found, tmp_path / "c")
    model = ConnectomeModel.from_pretrained(tmp_path / "c", seed=0).get_base_model()
    assert (model.config.n_head, model.config.n_positions) == (2, 32)
    assert model.lm_head.weight is not model.transformer.wte.weight
    for name, parameter in parameters_of(model).items():
        if name in found:
            assert torch.equal(parameter != 0, found.mask(name)), name
    assert (model.transformer.wpe.weight != 0).all()


def test_published_file_without_a_mask_is_read_for_its_zeros(tmp_path):
    content, _ = published_content(weights_key="model_state_dict")
    masks = content.pop("mask")
    for name, mask in masks.items():
        content["model_state_dict"][name] = content["model_state_dict"][name] * mask
    found = conversion.from_published(saved(tmp_path, content, "model_002000.pt"))
    assert torch.equal(found.mask("lm_head.weight"), masks["lm_head.weight"].bool())
    assert found.config.generation == 0


def test_published_file_without_a_mask_or_zeros_is_refused(tmp_path):
    content, _ = published_content()
    content.pop("mask")
    content["weights"] = {n: v + 1 for n, v in content["weights"].items()}
    with pytest.raises(ConfigError, match=r"has no mask, and 100\.00% of its weights are not 0"):
        conversion.from_published(saved(tmp_path, content))


class Bomb:
    def __reduce__(self):
        return (exec, ("raise RuntimeError('executed')",))


def spoil(content, change):
    content = {key: dict(v) if isinstance(v, dict) else v for key, v in content.items()}
    change(content)
    return content


def put(key, name, value):
    def change(content):
        content[key][name] = value

    return change


def drop(*keys):
    def change(content):
        for key in keys:
            content.pop(key)

    return change


HEAD = "lm_head.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(args=Bomb()), "holds more than plain values"),
        (drop("weights"), "has no state dict"),
        (
            put("weights", "transformer.wte.weight", torch.zeros(3)),
            "has no matrix 'transformer.wte",
        ),
        (put("weights", HEAD, torch.zeros(40, 9)), r"is \(40, 9\); by the embedding's width it is"),
        (put("weights", HEAD, torch.zeros(1).expand(40, 10**9)), "claims .* more than the file's"),
        (put("weights", HEAD, torch.full((40, 8), torch.inf)), "values that are not finite"),
        (put("weights", HEAD, "a string"), "is a str; expected a tensor"),
        (put("weights", HEAD, torch.eye(8).to_sparse()), "claims"),
        (put("weights", "transformer.wpe.weight", torch.ones(32, 8)), "wpe.weight' too"),
        (lambda c: c["weights"].pop(HEAD), "has no 'lm_head.weight'"),
        (lambda c: c["mask"].pop(HEAD), "has no 'lm_head.weight'"),
        (put("mask", HEAD, torch.full((40, 8), 0.5)), "values other than 0 and 1"),
        (put("mask", HEAD, torch.zeros(40, 8)), "keeps none of its 320 weights"),
        (put("cfg", "block_size", 10**12), "block_size is 1000000000000; expected"),
    ],
)
def test_published_file_that_was_altered_is_refused(tmp_path, change, message):
    content, _ = published_content()
    with pytest.raises(FormatError, match=message):
        conversion.from_published(saved(tmp_path, spoil(content, change)))


def test_heads_that_do_not_divide_the_width_are_refused(tmp_path):
    content, _ = published_content()
    weights = {n: v for n, v in content["weights"].items() if "rotary" not in n}
    content |= {"weights": weights, "cfg": {"n_head": 3}}
    with pytest.raises(FormatError, match="3 heads do not divide a width of 8"):
        conversion.from_published(saved(tmp_path, content))


def test_archive_whose_members_are_compressed_is_refused(tmp_path):
    content, _ = published_content()
    file = saved(tmp_path, content)
    packed = tmp_path / "model_generation_6.pt"
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
        for member in source.namelist():
            out.writestr(member, source.read(member))
    with pytest.raises(FormatError, match="are compressed or larger"):
        conversion.from_published(packed)


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_truncated_or_foreign_file_is_refused(tmp_path, keep):
    content, _ = published_content()
    file = saved(tmp_path, content)
    data = file.read_bytes()
    file.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(FormatError, match="Get a sound copy"):
        conversion.from_published(file)


# ---- whichever it is -----------------------------------------------------------------------------


def test_own_connectome_of_a_checkpoint_goes_before_its_zeros(tmp_path):
    model = tiny_model("gpt2")
    wired = drawn(model, density=0.5)
    wire(model, wired, reset="fresh_magnitude")
    name = "transformer.wte.weight"
    with torch.no_grad():  # a survivor that was trained to 0
        model.transformer.wte.weight[wired.mask(name).nonzero(as_tuple=True)] = 0.0
        model.transformer.wte.weight[0, 0] = 1.0
    model.save_pretrained(tmp_path)
    assert conversion.from_checkpoint(tmp_path) != wired
    storage.write(wired, tmp_path / "connectome")
    found, kind = conversion.open_any(tmp_path)
    assert (found, kind) == (wired, "connectome of a trained checkpoint")


def test_each_kind_of_source_is_told(tmp_path):
    wired = sparse_checkpoint(tmp_path / "checkpoint")
    storage.write(wired, tmp_path / "stored")
    assert conversion.open_any(tmp_path / "stored") == (wired, "connectome")
    found, kind = conversion.open_any(tmp_path / "checkpoint")
    assert (found, kind) == (wired, "zeros of a trained checkpoint")
    with pytest.raises(FormatError, match=r"holds no connectome .* no trained checkpoint"):
        conversion.open_any(tmp_path)
