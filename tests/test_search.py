from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import drawn, tiny_model

sys.path.insert(0, str(Path(__file__).parent / "workers"))
import evolve_worker

from hf_connectome import Connectome, SignedMask
from hf_connectome.config import ConnectomeConfig
from hf_connectome.errors import ConfigError, HostMismatchError, RunError
from hf_connectome.evaluation.paired import paired_difference
from hf_connectome.hosts import describe
from hf_connectome.outer_loops import OuterLoopArguments, SearchTrainer
from hf_connectome.outer_loops.population import Population, mutated
from hf_connectome.outer_loops.search import EVALUATIONS_FILE
from hf_connectome.scope import resolve
from hf_connectome.sources import find_connectome
from hf_connectome.wirings.random import draw_entry


def wiring(shape=(6, 8), num_links=12, seed=0, names=("w",)):
    return Connectome({name: draw_entry(shape, num_links, seed, name) for name in names})


# ---- mutation ------------------------------------------------------------------------------------


@given(
    num_links=st.integers(1, 48),
    turnover=st.floats(0.01, 1.0),
    keep_signs=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_child_has_as_many_links_and_the_asked_fraction_elsewhere(
    num_links, turnover, keep_signs, seed
):
    parent = wiring(num_links=num_links)
    child = mutated(parent, turnover, keep_signs=keep_signs, seed=seed, number=1)
    before, after = parent.sign("w"), child.sign("w")
    moved = min(max(1, round(turnover * num_links)), 48 - num_links)
    stayed = (before != 0) & (after != 0)
    assert child.num_survivors == num_links
    assert int(stayed.sum()) == num_links - moved
    assert torch.equal(before[stayed], after[stayed])
    if keep_signs:
        assert before.sum() == after.sum()


def test_children_differ_by_number_and_parameter_and_are_drawn_again_alike():
    parent = wiring(names=("a", "b"))
    same = parent.replace({n: SignedMask.pack(parent.mask("a"), parent.sign("a")) for n in "ab"})
    children = [mutated(same, 0.5, keep_signs=False, seed=0, number=number) for number in (1, 2, 1)]
    assert children[0] == children[2] != children[1]
    assert not torch.equal(children[0].sign("a"), children[0].sign("b"))


def test_signs_of_moved_links_are_fair_when_they_are_drawn():
    sign = torch.zeros(100, 100, dtype=torch.int8)
    sign[:50] = 1
    parent = Connectome({"w": SignedMask.pack(sign != 0, sign)})
    child = mutated(parent, 0.8, keep_signs=False, seed=0, number=0)
    negative = int((child.sign("w") < 0).sum())
    assert 1900 < negative < 2100  # of 4000; 3.2 standard deviations


# ---- population ----------------------------------------------------------------------------------


def population(seed=0, **changes):
    settings = {"num_parents": 2, "num_children": 3, "turnover": 0.2, "keep_signs": False}
    return Population(lambda number: wiring(seed=number), seed=seed, **{**settings, **changes})


def test_the_best_of_parents_and_children_are_the_next_parents():
    tried = population()
    for loss in (5.0, 3.0, 4.0, 4.0, 2.0, 9.0, 9.0, 9.0, 9.0):
        tried.tell(tried.propose(), loss)
        if tried.num_evaluated == 3:
            assert [(p.index, p.loss) for p in tried.parents] == [(1, 3.0), (2, 4.0)]
    assert [(p.index, p.loss) for p in tried.parents] == [(4, 2.0), (1, 3.0)]
    assert tried.best.index == 4


@given(st.lists(st.floats(0, 1), min_size=9, max_size=9), st.integers(0, 9))
def test_the_best_is_never_lost_and_the_same_losses_give_the_same_population(losses, seed):
    tried, again = population(seed), population(seed)
    for number, loss in enumerate(losses):
        proposed = tried.propose()
        assert proposed == tried.propose() == again.propose()
        tried.tell(proposed, loss)
        again.tell(proposed, loss)
        assert tried.best.loss == min(losses[: number + 1])
        assert tried.best.index == losses.index(min(losses[: number + 1]))


def short_loss(candidate, teacher):
    """Train signs at 0.5 for three steps towards a planted sparse teacher; return what is left."""
    weight, mask = 0.5 * candidate.sign("w").float(), candidate.mask("w")
    for _ in range(3):
        weight -= 0.2 * 2 * (weight - teacher) * mask
    return float(((weight - teacher) ** 2).sum())


def planted(seed):
    links = wiring(seed=1000 + seed)
    size = 0.5 + torch.rand(6, 8, generator=torch.Generator().manual_seed(seed))
    return links.sign("w") * size


@pytest.mark.slow
def test_search_beats_as_many_random_wirings_on_a_planted_one():
    searched, drawn_at_random = [], []
    for seed in range(8):
        teacher = planted(seed)
        tried = population(seed, num_parents=3, num_children=10)
        for _ in range(300):
            candidate = tried.propose()
            tried.tell(candidate, short_loss(candidate, teacher))
        searched.append(tried.best.loss)
        candidates = (wiring(seed=10_000 * (seed + 1) + number) for number in range(300))
        drawn_at_random.append(min(short_loss(c, teacher) for c in candidates))
    result = paired_difference(searched, drawn_at_random)
    assert result.high < 0
    assert result.p_value == 2 / 2**8  # every one of the eight


# ---- the trainer ---------------------------------------------------------------------------------


def trainer(folder, loop=None, model=None, **options):
    base = evolve_worker.trainer(folder, **{"generations": 2, "eval_strategy": "no", **options})
    settings = {"search_steps": 2, "search_parents": 2, "search_eval_blocks": 16, **(loop or {})}
    return SearchTrainer(
        model or base.model,
        base.args,
        loop=OuterLoopArguments(outer_loop="search", **settings),
        train_dataset=base.train_dataset,
        eval_dataset=base.eval_dataset,
        data_collator=base.data_collator,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = trainer(tmp_path_factory.mktemp("finished"))
    run.train()
    return run


def evaluations(run):
    lines = (run.output_folder / EVALUATIONS_FILE).read_text().splitlines()
    return [json.loads(line) for line in lines]


def records(run):
    return [{k: v for k, v in r.items() if k != "epoch"} for r in run.state.log_history]


def test_a_generation_has_as_many_candidates_as_its_steps_pay_for(finished):
    assert len(evaluations(finished)) == 6
    assert len({e["digest"] for e in evaluations(finished)}) == 6


def test_the_best_candidate_is_what_inherit_finds(finished):
    found = Connectome.from_pretrained(find_connectome(finished.output_folder))
    best = min(evaluations(finished), key=lambda e: e["loss"])
    assert found == finished.connectome
    assert found.digest == best["digest"]
    assert found.config.generation == 2
    assert found.config.architecture == "GPT2LMHeadModel"
    for name, entry in found.items():
        assert entry.num_survivors == finished.args.schedule.survivors_after(entry.num_weights, 2)
        assert name in finished.final_counts


def test_the_lineage_is_that_of_the_best(finished):
    rows, losses = finished.connectome.lineage, [e["loss"] for e in evaluations(finished)]
    assert [row["eval_loss"] for row in rows] == [min(losses[:3]), min(losses)]
    assert [row["steps"] for row in rows] == [6, 12]
    assert rows[0]["outer_loop"] == "search"
    assert rows[0]["search_steps"] == 2
    assert "criterion" not in rows[0]


def test_records_have_every_candidate_and_the_best_of_each_generation(finished):
    text = (finished.output_folder / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert [r["candidate_loss"] for r in rows if "candidate_loss" in r] == [
        e["loss"] for e in evaluations(finished)
    ]
    assert [r["step"] for r in rows] == [2, 4, 6, 6, 8, 10, 12, 12]
    assert [r["generation"] for r in rows] == [0] * 4 + [1] * 4


def test_the_host_is_left_as_it_was(finished):
    fresh = evolve_worker.model().state_dict()
    assert all(torch.equal(fresh[n], t) for n, t in finished.model.state_dict().items())


@pytest.mark.parametrize("interrupted_at", [0, 2, 3, 5])
def test_an_interrupted_search_goes_on_and_evaluates_nothing_twice(
    finished, tmp_path, monkeypatch, interrupted_at
):
    losses = [e["loss"] for e in evaluations(finished)]
    asked = []

    def recorded_loss(run, candidate, number):
        if number == interrupted_at and number not in asked:
            asked.append(number)
            raise KeyboardInterrupt
        asked.append(number)
        return losses[number]

    monkeypatch.setattr(SearchTrainer, "_loss_of", recorded_loss)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path).train()
    run = trainer(tmp_path)
    run.train()
    assert sorted(asked) == sorted([*range(6), interrupted_at])
    assert run.connectome == finished.connectome
    assert run.connectome.lineage == finished.connectome.lineage
    assert records(run) == records(finished)


def test_the_loss_of_a_candidate_depends_on_nothing_that_was_done_before(finished, tmp_path):
    run = trainer(tmp_path)
    torch.manual_seed(99)
    run._population = None
    first = Connectome.from_pretrained(finished.generation_folder(0))
    assert run._loss_of(first, 0) == evaluations(finished)[0]["loss"]


def test_a_finished_search_is_shown_again_without_an_evaluation(finished, monkeypatch):
    monkeypatch.setattr(SearchTrainer, "_loss_of", None)
    run = trainer(finished.output_folder)
    run.train()
    assert run.connectome == finished.connectome


def test_evaluations_of_another_search_are_refused(finished, tmp_path):
    (tmp_path / EVALUATIONS_FILE).write_text(
        (finished.output_folder / EVALUATIONS_FILE).read_text()
    )
    with pytest.raises(RunError, match=r"evaluation 0 in .* is of another wiring"):
        trainer(tmp_path, seed=6).train()


@pytest.mark.parametrize("text", ["{", '{"digest": "a"}', "[]"])
def test_damaged_evaluations_are_refused(tmp_path, text):
    (tmp_path / EVALUATIONS_FILE).write_text(text)
    with pytest.raises(RunError, match=r"evaluations.jsonl cannot be read"):
        trainer(tmp_path).train()


# ---- what it starts from -------------------------------------------------------------------------


def saved_start(folder, scope="all-matrices", **changes):
    model = evolve_worker.model()
    connectome = drawn(model, scope=scope, **changes)
    connectome.save_pretrained(folder)
    return connectome


def test_a_connectome_is_the_first_candidate_and_the_others_are_its_variants(tmp_path, monkeypatch):
    start = saved_start(tmp_path / "start", density=0.3)
    proposed = []

    def loss_of(run, candidate, number):
        proposed.append(candidate)
        return float(number)

    monkeypatch.setattr(SearchTrainer, "_loss_of", loss_of)
    run = trainer(tmp_path / "run", {"search_start": str(tmp_path / "start")})
    run.train()
    assert run.connectome == start == proposed[0]
    for candidate in proposed:
        assert candidate.densities() == start.densities()
        assert candidate.overlap(start).jaccard > 0.6
    assert len(set(proposed)) == 6


def test_starts_that_cannot_be_varied_are_refused(tmp_path):
    saved_start(tmp_path / "body", scope="body")
    with pytest.raises(HostMismatchError, match="is in scope of only one of search_start"):
        trainer(tmp_path, {"search_start": str(tmp_path / "body")})
    whole = saved_start(tmp_path / "whole")
    with pytest.raises(ConfigError, match=r"final_density is 0.5, but the search starts from"):
        trainer(tmp_path, {"search_start": str(tmp_path / "whole")}, final_density=0.5)
    bare = whole.replace({n: SignedMask.pack(e.mask(), orientation=e.orientation)
                          for n, e in whole.items()})  # fmt: skip
    bare.save_pretrained(tmp_path / "bare")
    with pytest.raises(ConfigError, match="is mask-only, and a search varies places and signs"):
        trainer(tmp_path, {"search_start": str(tmp_path / "bare")})
    other = tiny_model("gpt2", n_inner=48)
    foreign = drawn(other)
    config = describe(other, ConnectomeConfig(), resolve(other))
    foreign.replace(config=replace(config)).save_pretrained(tmp_path / "foreign")
    with pytest.raises(HostMismatchError):
        trainer(tmp_path, {"search_start": str(tmp_path / "foreign")})


# ---- refusals ------------------------------------------------------------------------------------


def test_data_that_cannot_be_divided_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"there are 96 training blocks, of which .* keeps 93"):
        trainer(tmp_path, {"search_eval_blocks": 93})


def test_a_checkpoint_to_resume_from_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="a search has no checkpoints"):
        trainer(tmp_path).train(resume_from_checkpoint=True)


def test_a_loss_that_is_not_finite_stops_the_search(tmp_path):
    with pytest.raises(RunError, match="the loss of candidate 0 is nan"):
        trainer(tmp_path, learning_rate=1e30, max_grad_norm=0.0).train()


def test_warm_up_has_the_share_of_a_candidate_that_it_has_of_a_generation(tmp_path):
    run = trainer(tmp_path, steps_per_generation=40, warmup_steps=10, loop={"search_steps": 8})
    assert run._candidate_arguments().warmup_steps == 2
    assert run._candidate_arguments().max_steps == 8
    assert run.args.warmup_steps == 10
