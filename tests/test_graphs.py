"""Graphs of neurons, their twins, and the wirings that are made of them."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.controls import random_twin
from hf_connectome.controls.graphs import graph_twin
from hf_connectome.errors import ConfigError, DataError, ScopeError, UnknownNameError
from hf_connectome.graphs import NeuronGraph, celegans_graph, larva_graph, read_graph
from hf_connectome.graphs.base import unreached_outputs
from hf_connectome.scope import EMBEDDING, IN_OUT, OUT_IN, ScopedParameter
from hf_connectome.testing import check_wiring
from hf_connectome.wirings import make_wiring, wirings

needs_cect = pytest.mark.skipif(find_spec("cect") is None, reason="cect is not installed")
SIDES = {"inputs": "a", "outputs": "d"}
ROLES = ("sensory", "inter", "motor")


def chain(**changes):
    """a -> b -> c -> d, and a -> c; c onto itself."""
    edges = [("a", "b"), ("b", "c"), ("c", "d"), ("a", "c", 3.0), ("c", "c", 2.0)]
    return NeuronGraph.from_edges(**({"names": "abcd", "edges": edges} | SIDES | changes))


def drawn_graph(num, seed, density=0.3):
    draw = torch.Generator().manual_seed(seed)
    weights = torch.rand(num, num, generator=draw) * (
        torch.rand(num, num, generator=draw) < density
    )
    weights[0, num - 1] = 1.0
    third = num // 3
    sides = tuple(range(third)), tuple(range(num - third, num))
    return NeuronGraph(tuple(f"n{i}" for i in range(num)), weights, *sides)


# ---- the graph -----------------------------------------------------------------------------------


def test_rows_are_presynaptic_and_a_linear_map_goes_along_or_against():
    graph = chain()
    signal = torch.tensor([1.0, 0.0, 0.0, 0.0])  # at a
    along = graph.linear_mask("along").float() @ signal
    against = graph.linear_mask("against").float() @ signal
    assert along.tolist() == [0, 1, 1, 0]  # a synapses onto b and c
    assert against.tolist() == [0, 0, 0, 0]  # nothing synapses onto a
    assert graph.linear_mask().equal(graph.linear_mask("along"))


def test_graph_counts_its_parts():
    graph = chain()
    assert (graph.num_neurons, graph.num_edges, graph.num_self_loops) == (4, 5, 1)
    assert graph.density == 5 / 16
    assert graph.roles == ("sensory", "inter", "inter", "motor")
    assert graph.of_role("inter").tolist() == [1, 2]
    assert graph.num_edges_between("sensory", "inter") == 2
    assert graph.num_edges_between("inter", "motor") == 1
    assert graph.num_edges_between("sensory", "motor") == 0
    assert graph.weights[0, 2] == 3.0


def test_weights_of_an_edge_that_comes_twice_add_up():
    graph = chain(edges=[("a", "d", 1.5), ("a", "d", 2.0), ("a", "b")])
    assert graph.num_edges == 2
    assert graph.weights[0].tolist() == [0, 1, 0, 3.5]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"names": "abcda"}, "'a' is the name of more than one neuron"),
        ({"edges": [("a", "b"), ("x", "y"), ("z", "w")]}, "'x', 'y', 'z' and 1 more is not among"),
        ({"inputs": "q"}, "'q' is not among the 4 neurons"),
        ({"edges": []}, "4 neurons have no synapse"),
        ({"edges": [("a", "b", -1.0)]}, "a negative or infinite weight"),
        ({"edges": [("a", "b", float("nan"))]}, "a negative or infinite weight"),
        ({"inputs": ""}, "there is no input neuron"),
        ({"outputs": ""}, "there is no output neuron"),
        ({"inputs": "aba"}, "the input neurons 0 are listed twice"),
        ({"inputs": "ab", "outputs": "bad"}, "the neurons 0, 1 are inputs and outputs"),
    ],
)
def test_what_is_no_graph_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        chain(**changes)


@pytest.mark.parametrize("shape", [(3, 4), (3,), (4, 4)])
def test_adjacency_that_is_not_square_is_refused(shape):
    with pytest.raises(ConfigError, match=r"the adjacency is \(.*with 3 names; expected a square"):
        NeuronGraph(("a", "b", "c"), torch.ones(shape), (0,), (1,))


def test_neurons_that_do_not_exist_are_refused():
    with pytest.raises(ConfigError, match="the output neurons 7, -1 do not exist; there are 3"):
        NeuronGraph(("a", "b", "c"), torch.ones(3, 3), (0,), (7, -1))


def test_direction_that_is_none_is_refused():
    with pytest.raises(UnknownNameError, match=r"unknown direction 'alogn'. Did you mean 'along'"):
        chain().linear_mask("alogn")


def test_outputs_are_reached_after_as_many_hops_as_the_path_is_long():
    mask = chain().linear_mask()
    assert [unreached_outputs(mask, (0,), (1, 2, 3), hops) for hops in range(3)] == [
        [1, 2, 3], [3], [],
    ]  # fmt: skip
    assert unreached_outputs(chain().linear_mask("against"), (0,), (3,), 9) == [3]


# ---- twins ---------------------------------------------------------------------------------------


@given(st.integers(6, 20), st.integers(0, 2**20))
def test_twins_keep_what_they_promise_and_nothing_gets_lost(num, seed):
    graph = drawn_graph(num, seed)
    for control in ("random", "degrees", "hubs-capped", "permuted", "roles"):
        twin = graph_twin(graph, control, seed)
        assert (twin.names, twin.roles, twin.num_edges) == (
            graph.names,
            graph.roles,
            graph.num_edges,
        )
        assert (
            twin.weights[twin.adjacency].sort()[0].equal(graph.weights[graph.adjacency].sort()[0])
        )
    degrees = graph_twin(graph, "degrees", seed)
    for side in (0, 1):
        assert degrees.adjacency.sum(side).equal(graph.adjacency.sum(side))
    roles = graph_twin(graph, "roles", seed)
    for pre in ROLES:
        for post in ROLES:
            between = graph.num_edges_between(pre, post)
            assert roles.num_edges_between(pre, post) == between


def test_twins_depend_on_the_seed_alone_and_differ():
    graph = drawn_graph(30, 0)
    twins = {}
    for control in ("random", "degrees", "hubs-capped", "roles"):
        twins[control] = graph_twin(graph, control, 1)
        assert twins[control].weights.equal(graph_twin(graph, control, 1).weights)
        assert not twins[control].adjacency.equal(graph_twin(graph, control, 2).adjacency)
        assert not twins[control].adjacency.equal(graph.adjacency)
    assert not twins["roles"].adjacency.equal(twins["random"].adjacency)


def test_roles_are_uniform_within_a_block():
    graph = drawn_graph(9, 1)
    counts = sum(graph_twin(graph, "roles", seed).adjacency[:3, :3].int() for seed in range(600))
    expected = 600 * int(graph.adjacency[:3, :3].sum()) / 9
    assert float((counts - expected).abs().max()) < 4.5 * (600 * 0.25) ** 0.5


def test_hubs_are_gone_from_their_twin():
    weights = torch.zeros(40, 40)
    weights[0], weights[:, 1] = 1.0, 1.0
    weights[torch.arange(40), (torch.arange(40) + 2) % 40] = 1.0
    graph = NeuronGraph(tuple(map(str, range(40))), weights, (0,), (1,))
    twin = graph_twin(graph, "hubs-capped", 0)
    assert int(twin.adjacency.sum(1).max()) < int(graph.adjacency.sum(1).max()) == 40


@pytest.mark.parametrize(
    ("control", "error", "said"),
    [
        ("rolse", UnknownNameError, "unknown twin of a graph 'rolse'. Did you mean 'roles'"),
        ("random-signs", ConfigError, "needs signs"),
    ],
)
def test_twin_that_a_graph_cannot_have_is_refused(control, error, said):
    with pytest.raises(error, match=said):
        graph_twin(drawn_graph(9, 0), control, 0)


# ---- files ---------------------------------------------------------------------------------------

NEURONS = "name,role\na,sensory\nb,inter\nc,inter\nd,output\n"
EDGES = "pre,post,weight\na,b,1\nb,c,1\nc,d,1\na,c,3\nc, c ,2\n\n"
MATRIX = ",a,b,c,d\na,0,1,3,0\nb,0,0,1,0\nc,0,0,2,1\nd,0,0,0,0\n"


@pytest.fixture
def files(tmp_path):
    for name, text in (("neurons", NEURONS), ("edges", EDGES), ("matrix", MATRIX)):
        (tmp_path / f"{name}.csv").write_text(text)
    indices = {"src": [0, 1, 2, 0, 2], "dst": [1, 2, 3, 2, 2], "weight": [1, 1, 1, 3, 2]}
    names = np.array(list("abcd"))
    roles = np.array(["input", "inter", "inter", "motor"])
    np.savez(tmp_path / "indices.npz", names=names, role=roles, **indices)
    np.savez(tmp_path / "adjacency.npz", ids=names, adjacency=chain().weights.numpy())
    return tmp_path


@pytest.mark.parametrize("name", ["edges.csv", "matrix.csv", "indices.npz", "adjacency.npz"])
def test_every_format_gives_the_same_graph(files, name):
    graph = read_graph(files / name, files / "neurons.csv")
    assert graph.weights.equal(chain().weights)
    assert (graph.names, graph.roles) == (chain().names, chain().roles)


def test_npz_may_say_the_roles_itself(files):
    assert read_graph(files / "indices.npz").roles == chain().roles


def test_roles_may_be_given_by_name(files):
    graph = read_graph(files / "matrix.csv", inputs=["a", "elsewhere"], outputs=["d"])
    assert graph.roles == chain().roles


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("edges.csv", "pre,post\n", "it has no rows"),
        ("edges.csv", "pre,post\na,b\nc\n", "row 3 has 1 fields; expected a header"),
        ("edges.csv", "pre,post,weight\na,b,many\n", "has 'many' where a weight"),
        ("edges.csv", "pre,post\na,x\n", "'x' is not among the 4 neurons"),
        ("matrix.csv", ",a,b\na,0,1\nc,1,0\n", "no list of edges .* and no square matrix"),
        ("matrix.csv", ",a,b\na,0,?\nb,1,0\n", "has '\\?' where a weight"),
        ("neurons.csv", "name,role\na,sensor\n", "has the role 'sensor'; expected sensory, input"),
        ("neurons.csv", "neuron,role\na,sensory\n", "expected name and role"),
    ],
)
def test_damaged_table_is_refused_by_name(files, name, text, said):
    (files / name).write_text(text)
    graph = name if name != "neurons.csv" else "edges.csv"
    with pytest.raises((ConfigError, DataError), match=said):
        read_graph(files / graph, files / "neurons.csv")


@pytest.mark.parametrize("name", ["edges.csv", "matrix.csv", "adjacency.npz"])
def test_graph_without_roles_is_refused(files, name):
    with pytest.raises(DataError, match="does not say which neurons are inputs and outputs"):
        read_graph(files / name)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"ids": [1, 2]}, "none of 'source', 'pre', 'from' and 1 more"),
        ({"src": [0], "dst": [1]}, "none of 'names', 'ids'"),
        ({"ids": [1, 2], "src": [0], "dst": [1, 0]}, "1 sources, 2 targets"),
        ({"ids": [1, 2], "src": [0], "dst": [2]}, "a number that none of the 2 has"),
        ({"ids": [1, 2], "adjacency": np.ones((2, 3))}, r"the adjacency is \(2, 3\), with 2 names"),
        ({"ids": np.array([{}], dtype=object)}, "cannot be read as .npz"),
    ],
)
def test_damaged_npz_is_refused_by_name(tmp_path, content, said):
    np.savez(tmp_path / "graph.npz", **content)
    with pytest.raises(DataError, match=said):
        read_graph(tmp_path / "graph.npz")


@pytest.mark.parametrize("name", ["nothing.csv", "nothing.npz"])
def test_file_that_is_not_there_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="cannot be read"):
        read_graph(tmp_path / name)


def test_larva_takes_its_roles_from_the_annotations(tmp_path):
    np.savez(tmp_path / "edges.npz", ids=[11, 12, 13], src=[0, 1], dst=[1, 2], all_all=[4, 5])
    header = "left_id,right_id,celltype\n"
    (tmp_path / "annotations.csv").write_text(header + "11,no pair,sensory\n99,13,DN-VNC\n")
    graph = larva_graph(tmp_path / "edges.npz", tmp_path / "annotations.csv")
    assert graph.roles == ("sensory", "inter", "motor")
    assert graph.weights[0, 1] == 4
    (tmp_path / "annotations.csv").write_text("id,celltype\n11,sensory\n")
    with pytest.raises(DataError, match="lacks the columns left_id, right_id and celltype"):
        larva_graph(tmp_path / "edges.npz", tmp_path / "annotations.csv")
    with pytest.raises(DataError, match="cannot be read"):
        larva_graph(tmp_path / "edges.npz", tmp_path / "elsewhere.csv")


# ---- the nematode --------------------------------------------------------------------------------


@needs_cect
def test_celegans_is_the_published_graph():
    graph = celegans_graph()
    assert (graph.num_neurons, graph.num_edges, graph.num_self_loops) == (300, 5084, 45)
    assert tuple(len(graph.of_role(role)) for role in ROLES) == (88, 89, 123)
    table = [[graph.num_edges_between(pre, post) for post in ROLES] for pre in ROLES]
    assert table == [[451, 661, 320], [447, 1113, 667], [150, 457, 818]]


@needs_cect
def test_signals_reach_more_motor_neurons_along_the_synapses():
    graph = celegans_graph()

    def missing(direction, hops):
        mask = graph.linear_mask(direction)
        return len(unreached_outputs(mask, graph.inputs, graph.outputs, hops))

    assert [missing("along", hops) for hops in (1, 2, 6)] == [123 - 77, 0, 0]
    assert [missing("against", hops) for hops in (1, 2)] == [123 - 62, 123 - 117]


def test_celegans_without_its_package_says_what_to_run(monkeypatch):
    monkeypatch.setattr("hf_connectome.graphs.celegans.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install --no-deps cect==0\.3\.5"):
        celegans_graph()


# ---- wirings -------------------------------------------------------------------------------------


def scoped(*shape, orientation=OUT_IN):
    return {"w": ScopedParameter("w", shape, orientation)}


@pytest.fixture
def file_wiring(files):
    def make(**options):
        options = {
            "path": str(files / "edges.csv"),
            "neurons": str(files / "neurons.csv"),
            **options,
        }
        return wirings.get("file")(**options)

    return make


def test_wiring_of_a_file_keeps_the_contract(file_wiring):
    check_wiring(file_wiring())
    check_wiring(file_wiring(direction="against"))


@needs_cect
def test_wiring_of_celegans_keeps_the_contract():
    check_wiring(wirings.get("celegans")())


def test_mask_is_the_graph_however_the_matrix_is_stored(file_wiring):
    along, against = chain().adjacency.T, chain().adjacency
    assert file_wiring().build(scoped(4, 4), None, 0).mask("w").equal(along)
    assert file_wiring().build(scoped(4, 4, orientation=IN_OUT), None, 0).mask("w").equal(against)
    other = file_wiring(direction="against").build(scoped(4, 4), 5 / 16, 0)
    assert other.mask("w").equal(against)


@pytest.mark.parametrize(
    ("scope", "density", "said"),
    [
        (scoped(4, 5), None, r"'w' is \(4, 5\), stored out_in; a graph of 4 neurons fits"),
        (scoped(4, 4, orientation=EMBEDDING), None, "stored embedding"),
        (scoped(4, 4), 0.5, "density 0.5 is not that of the graph, 5 of 16 or 0.3125"),
    ],
)
def test_what_the_graph_does_not_fit_is_refused(file_wiring, scope, density, said):
    with pytest.raises(ScopeError, match=said):
        file_wiring().build(scope, density, 0)


@pytest.mark.parametrize("name", ["file", "larva"])
def test_wiring_without_its_files_says_which(name):
    with pytest.raises(ConfigError, match=f"the wiring '{name}' reads"):
        wirings.get(name)().build(scoped(4, 4), None, 0)


def test_direction_of_a_wiring_is_checked_when_it_is_made():
    with pytest.raises(UnknownNameError, match="unknown direction 'back'"):
        wirings.get("file")(direction="back")


def test_conformance_check_finds_a_mask_that_is_stored_the_wrong_way(file_wiring, monkeypatch):
    wiring = file_wiring()
    build = type(wiring).build

    def unturned(self, scope, density, seed):
        as_linear = {n: ScopedParameter(n, p.shape, OUT_IN) for n, p in scope.items()}
        drawn = build(self, as_linear, density, seed)
        return Connectome(
            {
                n: SignedMask.pack(e.mask(), e.sign(), orientation=scope[n].orientation)
                for n, e in drawn.items()
            }
        )

    monkeypatch.setattr(type(wiring), "build", unturned)
    with pytest.raises(AssertionError, match="not the transpose"):
        check_wiring(wiring)


def test_drawn_graph_has_the_usual_twins(file_wiring):
    drawn = file_wiring().build(scoped(4, 4), None, 0)
    assert random_twin(drawn, 0).num_survivors == 5


def test_a_graph_is_drawn_at_its_own_density_by_its_name(tmp_path):
    (tmp_path / "edges.csv").write_text("pre,post\na,b\nb,c\nc,a\na,c\n")
    (tmp_path / "neurons.csv").write_text("name,role\na,sensory\nb,inter\nc,motor\n")
    files = f"path={tmp_path / 'edges.csv'},neurons={tmp_path / 'neurons.csv'}"
    wiring = make_wiring(f"file:{files},direction=against")
    scope = {"w": ScopedParameter("w", (3, 3), OUT_IN)}
    drawn = wiring.build(scope, wiring.default_density(), 0)
    assert drawn.num_survivors == 4
    assert wiring.counts(scope, None) == {"w": 4}
