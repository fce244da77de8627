"""Densities by layer and kind of module, and what stands on the figure."""

from __future__ import annotations

import itertools
import struct
import sys
from concurrent.futures import ThreadPoolExecutor

import matplotlib as mpl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib._pylab_helpers import Gcf
from matplotlib.figure import Figure
from matplotlib.text import Text
from tiny import KINDS, drawn, tiny_model

from hf_connectome.analysis.densities import densities_by_kind, density_figure
from hf_connectome.config import ConnectomeConfig
from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.errors import ConfigError


def entry(num_survivors=1, num_weights=4):
    mask = torch.arange(num_weights) < num_survivors
    return SignedMask.pack(mask.reshape(1, -1), torch.ones(1, num_weights))


def of_names(*names, **config):
    return Connectome({name: entry() for name in names}, config=ConnectomeConfig(**config))


def layered(num_layers, num_kinds=3):
    entries = {
        f"model.layers.{layer}.mlp.p{kind}.weight": entry(1 + (layer + kind) % 7, 8)
        for layer in range(num_layers)
        for kind in range(num_kinds)
    }
    return Connectome({**entries, "model.embed_tokens.weight": entry(3, 8)})


def png_size(path):
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


@pytest.fixture
def figures(monkeypatch):
    """The figures that were written, to ask what stands on them."""
    kept, save = [], Figure.savefig

    def record(self, *args, **kwargs):
        kept.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", record)
    return kept


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


# ---- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "kinds"),
    [
        (["transformer.wte.weight", "transformer.h.0.attn.c_attn.weight"],
         {"transformer.wte": [None], "attn.c_attn": [0]}),
        (["m.layers.0.q.weight", "m.layers.10.q.weight", "m.layers.9.q.weight"], {"q": [0, 9, 10]}),
        (["encoder.block.0.layer.0.SelfAttention.q.weight",
          "decoder.block.0.layer.0.SelfAttention.q.weight"],
         {"encoder.SelfAttention.q": [0], "decoder.SelfAttention.q": [0]}),
        (["model.layers.1.mlp.experts.0.w1.weight", "model.layers.1.mlp.experts.1.w1.weight"],
         {"mlp.experts.w1": [1]}),
        (["model.layers.1.mlp.experts.gate_up_proj"], {"mlp.experts.gate_up_proj": [1]}),
        (["0.weight", "2.weight"], {"weight": [0, 2]}),
        (["fc1.weight", "fc2.weight"], {"fc1": [None], "fc2": [None]}),
        (["a.0.w", "a.b.0.w"], {"a.w": [0], "a.b.w": [0]}),
        (["a.b.0.w", "a.0.w", "a.b.c.0.w"], {"a.w": [0], "a.b.w": [0], "a.b.c.w": [0]}),
        (["h.².w", "h.99999999.w"], {"h.².w": [None], "h.99999999.w": [None]}),
    ],
)  # fmt: skip
def test_layer_and_kind_are_read_from_the_name(names, kinds):
    found = densities_by_kind(of_names(*names))
    assert {kind.kind: sorted(kind.counts, key=str) for kind in found} == {
        kind: sorted(layers, key=str) for kind, layers in kinds.items()
    }


def test_matrices_of_one_kind_in_a_layer_count_together():
    connectome = Connectome({"l.0.experts.0.w": entry(1, 4), "l.0.experts.1.w": entry(3, 8)})
    (kind,) = densities_by_kind(connectome)
    assert (kind.num_survivors, kind.num_weights, kind.densities) == (4, 12, {0: 1 / 3})


def test_what_has_no_layer_comes_first():
    kinds = [kind.kind for kind in densities_by_kind(of_names("z.w", "h.0.b.w", "h.0.a.w"))]
    assert kinds == ["z.w", "a.w", "b.w"]


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", "0", "1", "layers", "weight"]), min_size=1, max_size=6),
        unique_by=".".join,
        max_size=8,
    )
)
def test_every_weight_is_counted_once_whatever_the_names(names):
    connectome = of_names(*map(".".join, names))
    kinds = densities_by_kind(connectome)
    assert sum(kind.num_weights for kind in kinds) == connectome.num_weights
    assert sum(kind.num_survivors for kind in kinds) == connectome.num_survivors
    assert len({(kind.kind, None in kind.counts) for kind in kinds}) == len(kinds)


# ---- the figure ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_figure_of_every_host_names_its_modules(tmp_path, figures, kind):
    connectome = drawn(tiny_model(kind))
    density_figure(connectome, tmp_path / "new" / "a.png")
    width, height = png_size(tmp_path / "new" / "a.png")
    assert width == 1400
    assert 600 <= height <= 1000
    shown = texts(figures[0])
    kinds = densities_by_kind(connectome)
    assert {k.kind for k in kinds if len(k.kind) <= 40} <= set(shown)
    assert shown.count("25.0") == sum(len(k.counts) for k in kinds)
    assert {"0", "1", "layer", "density by layer and module, in %"} <= set(shown)


@pytest.mark.parametrize("num_layers", [1, 16, 48])
def test_labels_of_many_layers_do_not_overlap(tmp_path, figures, num_layers):
    density_figure(layered(num_layers), tmp_path / "a.png")
    axes = figures[0].axes[0]
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    boxes += [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert len(axes.get_xticklabels()) <= 16
    assert all(box.x0 >= 0 and box.x1 <= 1400 for box in boxes)


def test_rows_of_many_layers_end_with_their_range(tmp_path, figures):
    density_figure(layered(20), tmp_path / "a.png")
    shown = texts(figures[0])
    assert shown.count("12.5 to 87.5") == 3
    assert "37.5" in shown


def test_colours_are_of_the_densities(tmp_path, figures):
    density_figure(layered(2, 1), tmp_path / "a.png")
    (mesh,) = figures[0].axes[0].collections[:1]
    assert mesh.get_array().tolist() == [[0.375, 0.375], [0.125, 0.25]]
    assert mesh.get_clim() == (0.0, 0.4)


def test_layer_without_a_module_stays_empty(tmp_path, figures):
    density_figure(of_names("h.0.a.w", "h.0.b.w", "h.1.b.w"), tmp_path / "a.png")
    assert figures[0].axes[0].collections[0].get_array().mask.tolist() == [
        [False, True],
        [False, False],
    ]
    assert texts(figures[0]).count("25.0") == 3


def test_lineage_is_drawn_beside_with_the_connectome_last(tmp_path, figures):
    lineage = [
        {"generation": 0, "density": 1.0, "eval_loss": 5.5},
        {"generation": 1, "density": 0.5, "eval_loss": 4.5},
    ]
    density_figure(of_names("h.0.a.w", lineage=lineage, generation=2), tmp_path / "a.png")
    bars = next(axes for axes in figures[0].axes if axes.get_xlabel() == "generation")
    assert [bar.get_height() for bar in bars.patches] == [1.0, 0.5, 0.25]
    assert "last held-out loss of a generation" in texts(figures[0])


def test_odd_lineage_is_drawn_without_what_is_odd(tmp_path, figures):
    rows = [
        {},
        {"generation": "0", "density": 1.0},
        {"generation": True, "density": True},
        {"generation": 10**400, "density": 10**400},
        {"generation": -1, "density": 1.0},
        {"generation": 2, "density": float("nan"), "eval_loss": "x"},
        {"generation": 3, "density": -1, "eval_loss": 10**400},
        {"generation": 4, "density": [1], "eval_loss": {"a": 1}},
        {"generation": 5, "density": 0.5, "eval_loss": 3},
    ]
    density_figure(of_names("h.0.a.w", lineage=rows, generation=6), tmp_path / "a.png")
    bars = next(axes for axes in figures[0].axes if axes.get_xlabel() == "generation")
    assert [bar.get_height() for bar in bars.patches] == [0.5, 0.25]


def test_many_modules_are_cut_and_said(tmp_path, figures, monkeypatch):
    monkeypatch.setattr("hf_connectome.analysis.densities._MOST_ROWS", 3)
    density_figure(of_names(*(f"h.0.m{i}.w" for i in range(5))), tmp_path / "a.png")
    shown = texts(figures[0])
    assert "density by layer and module, in % (2 modules not shown)" in shown
    assert ("m2.w" in shown, "m3.w" in shown) == (True, False)


def test_odd_names_are_text_and_no_formula(tmp_path, figures):
    density_figure(of_names("h.0.$x^2$.w", "h.0." + "long" * 30, "h.0.a\nb"), tmp_path / "a.png")
    shown = texts(figures[0])
    assert r"\$x^2\$.w" in shown
    assert "ab" in shown
    assert max(map(len, shown)) <= 40


def test_no_layer_means_no_layer_axis(tmp_path, figures):
    density_figure(of_names("fc1.weight", "fc2.weight"), tmp_path / "a.png")
    assert "layer" not in texts(figures[0])


def test_empty_connectome_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no parameter"):
        density_figure(Connectome({}), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_missing_matplotlib_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="pip install"):
        density_figure(layered(1), tmp_path / "a.png")


def test_drawing_leaves_no_trace_and_works_in_a_thread(tmp_path):
    before = dict(mpl.rcParams)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(density_figure, layered(2), tmp_path / "a.png").result()
    density_figure(layered(2), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert dict(mpl.rcParams) == before
    assert Gcf.figs == {}  # what pyplot would show
