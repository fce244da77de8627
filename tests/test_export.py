"""Exported models give what the masked dense ones give, save as those, and refuse the rest."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import KINDS, drawn, same, state_of, tiny_model
from tiny_hosts import inputs, logits
from torch import nn
from transformers import AutoModelForCausalLM

from hf_connectome.cli import app
from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.errors import (
    HostMismatchError,
    ScopeError,
    UnknownNameError,
    UnsupportedError,
)
from hf_connectome.export import FORMS, export
from hf_connectome.export.csr import num_bytes, product, rows, to_csr
from hf_connectome.export.layers import CsrEmbedding, CsrLinear, SparseLayer
from hf_connectome.export.speed import jobs, weight_bytes
from hf_connectome.hosts import wire
from hf_connectome.modeling import ConnectomeModel
from hf_connectome.storage import CONNECTOME_FOLDER
from hf_connectome.structures import OfInputs


def trained(kind, *, density=0.25, scope="all-matrices", **changes):
    """Return a model with dead weights of 0, biases that are not, and its connectome."""
    model = tiny_model(kind, **changes)
    connectome = drawn(model, density=density, scope=scope)
    wire(model, connectome, reset="keep")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model, connectome


# ---- products ------------------------------------------------------------------------------------


@given(
    num_tokens=st.integers(0, 70),
    outputs=st.integers(1, 40),
    inputs_=st.integers(1, 40),
    density=st.sampled_from([0.0, 0.05, 0.25, 1.0]),
    seed=st.integers(0, 99),
)
def test_product_is_that_of_the_dense_matrix(num_tokens, outputs, inputs_, density, seed):
    draw = torch.Generator().manual_seed(seed)
    keep = torch.rand(outputs, inputs_, generator=draw) < density
    matrix = torch.where(keep, torch.randn(outputs, inputs_, generator=draw), 0.0)
    tokens = torch.randn(num_tokens, inputs_, generator=draw)
    found = product(to_csr(matrix), tokens)
    torch.testing.assert_close(found, tokens @ matrix.T, rtol=1e-5, atol=1e-5)


@given(st.lists(st.integers(0, 4), max_size=12))
def test_rows_are_those_of_the_dense_matrix(numbers):
    matrix = torch.tensor([[0.0, 1, 2], [0, 0, 0], [3, 0, 0], [0, 4, 0], [5, 6, 7]])
    numbers = torch.tensor(numbers, dtype=torch.int64)
    assert torch.equal(rows(to_csr(matrix), numbers), matrix[numbers])


def test_csr_has_32_bit_indices_and_takes_8_bytes_a_survivor():
    matrix = torch.zeros(10, 20)
    matrix[2, 3:9] = 1.0
    held = to_csr(matrix)
    assert held.col_indices().dtype == held.crow_indices().dtype == torch.int32
    assert num_bytes(held) == 6 * 8 + 11 * 4
    assert to_csr(matrix.half()).dtype == to_csr(matrix.bfloat16()).dtype == torch.float32
    assert to_csr(matrix.double()).dtype == torch.float64


# ---- whole models --------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_exported_model_gives_what_the_dense_one_gives(kind, tied):
    changes = {} if kind == "vit" else {"tie_word_embeddings": tied}
    model, connectome = trained(kind, **changes)
    expected = logits(model, KINDS[kind])
    assert export(model, connectome) is model
    assert any(isinstance(module, CsrLinear) for module in model.modules())
    torch.testing.assert_close(logits(model, KINDS[kind]), expected, rtol=1e-5, atol=1e-5)
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_half_precision_stays_and_is_as_exact_as_the_dense_model(kind, dtype):
    model, connectome = trained(kind)
    exact = logits(model, KINDS[kind])
    model = model.to(dtype)
    error = (logits(model, KINDS[kind]).float() - exact).abs().mean()
    found = logits(export(model, connectome), KINDS[kind])
    assert found.dtype == dtype
    assert 0 < (found.float() - exact).abs().mean() <= 1.2 * error


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_generate_with_and_without_cache_gives_the_dense_models_tokens(kind):
    model, connectome = trained(kind)
    batch = inputs(KINDS[kind])["input_ids"].repeat(2, 1)
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    attention = torch.ones_like(batch)
    expected = model.generate(batch, attention_mask=attention, **options)
    export(model, connectome)
    for use_cache in (True, False):
        found = model.generate(batch, attention_mask=attention, use_cache=use_cache, **options)
        assert found.tolist() == expected.tolist()
    assert expected.shape == (2, 18)


def test_tied_modules_hold_one_weight_and_memory_shrinks():
    model, connectome = trained("gpt2", density=0.05)
    before = weight_bytes(model)
    export(model, connectome)
    table, head = model.transformer.wte, model.lm_head
    assert isinstance(table, CsrEmbedding)
    assert table.sparse is head.sparse
    assert copy.deepcopy(model).lm_head.sparse is head.sparse
    num_dense = sum(parameter.numel() for parameter in model.parameters())
    starts = sum(
        1 + (e.shape[1] if e.orientation == "in_out" else e.rows) for e in connectome.values()
    )
    assert weight_bytes(model) == 4 * num_dense + 8 * connectome.num_survivors + 4 * starts
    assert weight_bytes(model) < before / 2


def test_only_what_is_in_scope_and_plain_is_replaced():
    class Scaled(nn.Linear):
        def forward(self, inputs):
            return 2 * super().forward(inputs)

    model = nn.ModuleDict(
        {
            "plain": nn.Linear(4, 4),
            "scaled": Scaled(4, 4),
            "hooked": nn.Linear(4, 4),
            "clipped": nn.Embedding(5, 4, max_norm=1.0),
            "other": nn.Linear(4, 4),
        }
    )
    model["hooked"].register_forward_hook(lambda *_: None)
    names = [f"{name}.weight" for name in ("plain", "scaled", "hooked", "clipped")]
    connectome = drawn(model, scope=["plain", "scaled", "hooked", "clipped"])
    assert sorted(connectome) == sorted(names)
    wire(model, connectome, reset="keep")
    export(model, connectome)
    assert [n for n, m in model.named_modules() if isinstance(m, SparseLayer)] == ["plain"]


def test_dense_changes_nothing_but_freezes():
    model, connectome = trained("gpt2")
    before, kinds = state_of(model), [type(module) for module in model.modules()]
    export(model.train(), connectome, to="dense")
    assert same(before, model.state_dict())
    assert kinds == [type(module) for module in model.modules()]
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_survivor_of_0_costs_nothing():
    layer = nn.Sequential(nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        layer[0].weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]]))
    mask = torch.tensor([[True, True, False], [False, False, True]])
    connectome = Connectome({"0.weight": SignedMask.pack(mask, mask.float(), orientation="out_in")})
    export(layer, connectome)
    assert layer[0].weight.values().tolist() == [1.0, 2.0]


# ---- saving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_saved_export_is_an_ordinary_checkpoint_bit_for_bit(kind, tied, dtype, tmp_path):
    model, connectome = trained(kind, tie_word_embeddings=tied)
    model = model.to(dtype)
    before = state_of(model)
    model.save_pretrained(tmp_path / "dense")
    export(model, connectome)
    assert same(before, model.state_dict())
    model.save_pretrained(tmp_path / "exported")
    connectome.save_pretrained(tmp_path / "exported" / "connectome")
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("dense", "exported")]
    assert sizes[0] == sizes[1]
    configs = [
        json.loads((tmp_path / n / "config.json").read_text()) for n in ("dense", "exported")
    ]
    assert configs[0] == configs[1]

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype="auto").eval()
    assert same(before, loaded.state_dict())
    again = export(loaded, Connectome.from_pretrained(tmp_path / "exported" / "connectome"))
    assert torch.equal(logits(again, KINDS[kind]), logits(model, KINDS[kind]))


def test_part_of_an_export_saves_dense_too():
    model, connectome = trained("gpt2")
    before = {name: tensor.clone() for name, tensor in model.transformer.state_dict().items()}
    assert same(before, export(model, connectome).transformer.state_dict())


def test_weights_cannot_be_loaded_into_an_export():
    model, connectome = trained("gpt2")
    state = state_of(model)
    export(model, connectome)
    with pytest.raises(UnsupportedError, match=r"transformer.wte.weight is exported"):
        model.load_state_dict(state)


# ---- refusals ------------------------------------------------------------------------------------


def test_unknown_form_is_refused_with_the_nearest():
    model, connectome = trained("gpt2")
    with pytest.raises(UnknownNameError, match=r"'crs'. Did you mean 'csr'\?") as refused:
        export(model, connectome, to="crs")
    assert all(form in str(refused.value) for form in FORMS)


@pytest.mark.parametrize("to", FORMS)
def test_dead_weight_that_lives_is_refused_before_anything_changes(to):
    model, connectome = trained("gpt2")
    name = "transformer.h.1.mlp.c_fc.weight"
    dead = (~connectome.mask(name)).nonzero()
    with torch.no_grad():
        model.get_parameter(name)[tuple(dead[5])] = 1e-30
    match = rf"'{name}': 1 of {len(dead)} dead weights are not 0"
    with pytest.raises(HostMismatchError, match=match):
        export(model, connectome, to=to)
    assert not any(isinstance(module, SparseLayer) for module in model.modules())


def test_second_export_is_refused():
    model, connectome = trained("gpt2")
    export(model, connectome)
    with pytest.raises(UnsupportedError, match="is exported already"):
        export(model, connectome)


def test_adapters_are_refused_and_what_is_merged_is_taken(tmp_path):
    base, connectome = tiny_model("gpt2"), drawn(tiny_model("gpt2"))
    connectome.save_pretrained(tmp_path)
    wrapped = ConnectomeModel.from_pretrained(base, tmp_path).eval()
    expected = logits(wrapped, KINDS["gpt2"])
    for model in (wrapped, base):
        with pytest.raises(UnsupportedError, match="has adapters"):
            export(model, connectome)
    merged = export(wrapped.merge_and_unload(), connectome)
    torch.testing.assert_close(logits(merged, KINDS["gpt2"]), expected, rtol=1e-5, atol=1e-5)


def test_scope_without_a_plain_matrix_is_refused():
    model = nn.Sequential(nn.Conv2d(1, 2, 3))
    connectome = drawn(model)
    wire(model, connectome, reset="keep")
    with pytest.raises(ScopeError, match=r"none of '0.weight' is the weight of a plain Linear"):
        export(model, connectome)


def test_export_is_not_trained():
    model, connectome = trained("gpt2")
    export(model, connectome)
    with pytest.raises(UnsupportedError, match="cannot be trained"):
        model.train()
    model.eval()
    states = torch.randn(1, 3, 32, requires_grad=True)
    with pytest.raises(UnsupportedError, match="asked for a gradient"):
        model(inputs_embeds=states)
    with torch.no_grad():
        assert model(inputs_embeds=states).logits.shape == (1, 3, 97)


@pytest.mark.parametrize(
    "change", [lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.to("meta")]
)
def test_exported_layers_are_neither_moved_nor_cast(change):
    model, connectome = trained("gpt2")
    export(model, connectome).cpu().float()
    with pytest.raises(UnsupportedError, match=r"torch.float32 on cpu, was asked to become"):
        change(model)


def test_model_elsewhere_than_the_cpu_is_refused():
    model, connectome = trained("gpt2")
    with pytest.raises((UnsupportedError, HostMismatchError), match="meta device"):
        export(model.to("meta"), connectome)


def test_torch_without_mkl_is_refused(monkeypatch):
    model, connectome = trained("gpt2")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    with pytest.raises(UnsupportedError, match="no MKL"):
        export(model, connectome)
    export(model, connectome, to="dense")


# ---- 2:4 -----------------------------------------------------------------------------------------


def two_of_four(model):
    """Wire a model 2:4 by magnitude."""
    from hf_connectome.scope import resolve

    entries = {}
    for name, parameter in resolve(model).items():
        weight = model.get_parameter(name).detach()
        whole = torch.ones(weight.shape, dtype=torch.bool)
        half = weight.numel() // 2
        mask = OfInputs(2, 4).keep(weight.abs(), whole, half, parameter)
        entries[name] = SignedMask.pack(mask, weight, orientation=parameter.orientation)
    connectome = Connectome(entries)
    wire(model, connectome, reset="keep")
    return connectome


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_semi_structured_needs_cuda_once_all_is_2_of_4(kind):
    model = tiny_model(kind)
    connectome = two_of_four(model)
    with pytest.raises(UnsupportedError, match=r"cannot be semi-structured: .* to CUDA in float16"):
        export(model, connectome, to="semi-structured")
    assert not any(isinstance(module, SparseLayer) for module in model.modules())


def test_semi_structured_names_the_first_row_that_is_not_2_of_4():
    """Rows are outputs: GPT-2's c_fc is stored (in, out), so row 7 is its column 7."""
    model = tiny_model("gpt2")
    connectome = two_of_four(model)
    name = "transformer.h.1.mlp.c_fc.weight"
    mask, weight = connectome.mask(name).clone(), model.get_parameter(name)
    mask[8:12, 7] = True
    with torch.no_grad():
        weight[8:12, 7] = 0.5
    entry = SignedMask.pack(mask, weight, orientation="in_out")
    odd = connectome.replace({**connectome, name: entry})
    match = rf"'{name}': row 7 has 4 weights at inputs 8 to 11; expected at most 2 of every 4"
    with pytest.raises(ScopeError, match=match):
        export(model, odd, to="semi-structured")


def test_semi_structured_names_inputs_that_4_does_not_divide():
    model = nn.Sequential(nn.Linear(6, 4))
    connectome = drawn(model)
    wire(model, connectome, reset="keep")
    with pytest.raises(ScopeError, match=r"'0.weight' has 6 inputs, which 4 does not divide"):
        export(model, connectome, to="semi-structured")


# ---- speed ---------------------------------------------------------------------------------------


def test_jobs_can_be_repeated_and_count_their_tokens():
    model, connectome = trained("gpt2")
    export(model, connectome)
    found = jobs(model, batches=(1, 3), prompt=100, tokens=5)
    assert {name: tokens for name, (_, tokens) in found.items()} == {
        "decode, batch 1": 5,
        "decode, batch 3": 15,
        "prompt of 32": 32,  # n_positions
    }
    for job, _ in found.values():
        for _ in range(8):  # 8 * 5 steps would not fit 32 positions if the cache grew
            job()


@pytest.mark.parametrize("kind", ["bert", "t5", "vit"])
def test_speed_of_what_decodes_no_text_is_refused(kind):
    with pytest.raises(UnsupportedError, match="is no decoder of text"):
        jobs(tiny_model(kind))


def test_command_prints_what_the_machine_gains(tmp_path, capsys):
    model, connectome = trained("gpt2")
    model.save_pretrained(tmp_path)
    connectome.save_pretrained(tmp_path / CONNECTOME_FOLDER)
    files = sorted(tmp_path.rglob("*"))
    arguments = ["speed", str(tmp_path), "--rounds", "1"]
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as left:
            app([*arguments, *more], prog_name="hf-connectome")
        assert left.value.code == 0
    text, _, document = capsys.readouterr().out.partition("{")
    found = json.loads("{" + document)
    works = ["decode, batch 1", "decode, batch 8", "prompt of 32"]
    assert list(found["tokens_per_second"]) == works
    assert all(rate > 0 for rates in found["tokens_per_second"].values() for rate in rates.values())
    assert found["weight_bytes"]["dense"] == weight_bytes(model)
    assert found["weight_bytes"]["exported"] == weight_bytes(export(model, connectome))
    assert (found["density"], found["dtype"]) == (0.25, "float32")
    assert all(f"{work}, tokens/s" in text for work in works)
    assert sorted(tmp_path.rglob("*")) == files
