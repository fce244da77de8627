from __future__ import annotations

import pytest
import torch
from tiny import drawn, tiny_model

from hf_connectome import ConnectomeConfig, ConnectomeModel, architecture
from hf_connectome.hosts import describe
from hf_connectome.scope import resolve
from hf_connectome.storage import write


def stored(kind, folder, scope="all-matrices"):
    """Write a random connectome of a tiny host."""
    model = tiny_model(kind)
    connectome = drawn(model, density=0.4)
    names = resolve(model, scope)
    part = connectome.replace({name: connectome[name] for name in names})
    config = ConnectomeConfig(target_modules=scope, reset="sign_constant")
    write(part.replace(config=describe(model, config, names)), folder)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "vit", "mixtral"])
@pytest.mark.parametrize("scope", ["all-matrices", "body"])
def test_a_fresh_host_is_the_same_whether_dead_draws_are_left_out(
    kind, scope, tmp_path, monkeypatch
):
    stored(kind, tmp_path, scope)
    quick = ConnectomeModel.from_pretrained(tmp_path, seed=3).get_base_model().state_dict()
    monkeypatch.setattr(architecture, "_is_whole", lambda *_: False)
    whole = ConnectomeModel.from_pretrained(tmp_path, seed=3).get_base_model().state_dict()
    assert quick.keys() == whole.keys()
    assert all(torch.equal(quick[name], whole[name]) for name in whole)


def test_everything_in_scope_is_drawn_once_or_not_at_all(tmp_path, monkeypatch):
    built = []
    build = architecture._build

    def noting(config, *, device, undrawn, **how):
        if device != "meta":
            built.append(undrawn)
        return build(config, device=device, undrawn=undrawn, **how)

    monkeypatch.setattr(architecture, "_build", noting)
    stored("gpt2", tmp_path)
    built.clear()
    ConnectomeModel.from_pretrained(tmp_path, seed=3)
    assert built == [True]
    built.clear()
    ConnectomeModel.from_pretrained(tmp_path, seed=3, reset="init_std")
    assert built == [False]
