"""Two processes train as one does: DDP, FSDP2 and whole evolutions, under masks.

Each worker in tests/distributed runs once, on two gloo processes, and writes down what it saw.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

WORKERS = Path(__file__).parent / "distributed"
sys.path.insert(0, str(WORKERS))
import masks_worker  # noqa: E402
import ranking_worker  # noqa: E402
import rewiring_worker  # noqa: E402
import survivors_worker  # noqa: E402

from hf_connectome import Connectome  # noqa: E402

# This tree first, whatever is installed.
PATHS = os.pathsep.join([str(WORKERS.parent), str(WORKERS.parent.parent)])
NUM_PROCESSES = 2
TIMEOUT = 300

FSDP2 = [name for name, run in masks_worker.RUNS.items() if run.wrap == "fsdp2"]


def launch(worker: str, output: Path) -> None:
    """Run a worker on two processes; whatever goes wrong, none of them is left."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(NUM_PROCESSES), str(WORKERS / worker), str(output)),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        log, _ = process.communicate(timeout=TIMEOUT)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    assert process.returncode == 0, log[-6000:]


def results_of(worker: str, factory: pytest.TempPathFactory) -> Path:
    """Return the folder of what a worker wrote; it runs once for all processes of pytest-xdist."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    output = root / Path(worker).stem
    with FileLock(f"{output}.lock"):
        if not (output / "results.json").is_file():
            output.mkdir(exist_ok=True)
            launch(worker, output)
    return output


# ---- enforcement ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return results_of("masks_worker.py", tmp_path_factory)


@pytest.fixture(scope="module")
def seen(masks: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((masks / "results.json").read_text())
    assert results["world_size"] == NUM_PROCESSES
    return results


@pytest.mark.parametrize("name", masks_worker.RUNS)
def test_dead_weights_and_gradients_are_zero_on_every_rank(seen: dict[str, Any], name: str) -> None:
    for rank in seen[name]:
        assert rank["leaks"] == [0] * masks_worker.STEPS
        assert rank["gradients"] == [0] * masks_worker.STEPS
        assert rank["unbound"] == 0


@pytest.mark.parametrize("name", masks_worker.RUNS)
def test_two_processes_equal_one_on_the_joined_batch(
    seen: dict[str, Any], masks: Path, name: str
) -> None:
    run = masks_worker.RUNS[name]
    expected, weights = masks_worker.train(masks_worker.Run(run.kind, run.optimizer))
    losses = torch.tensor([rank["losses"] for rank in seen[name]])
    means = losses.mean(dim=0).tolist()
    assert means == pytest.approx(expected["losses"], abs=1e-5)
    for rank in seen[name]:  # of the whole gradient, after masking and before clipping
        assert rank["norms"] == pytest.approx(expected["norms"], rel=1e-4)
    found = load_file(masks / f"{name}.safetensors")
    assert found.keys() == weights.keys()
    # Adam divides a gradient by its size, rounding included; Muon rounds to bfloat16.
    tolerance = 1e-6 if run.optimizer == "sgd" else 1e-4
    for key, weight in weights.items():
        assert torch.allclose(found[key], weight.detach(), atol=tolerance), key


@pytest.mark.parametrize("name", masks_worker.RUNS)
def test_ranks_agree_to_the_bit(seen: dict[str, Any], name: str) -> None:
    first, second = seen[name]
    assert first["digest"] == second["digest"]


def test_views_of_the_buckets_as_gradients_give_the_same_bits(seen: dict[str, Any]) -> None:
    assert seen["ddp_bucket_view"][0]["digest"] == seen["ddp"][0]["digest"]


@pytest.mark.parametrize("name", FSDP2)
def test_fsdp2_really_shards(seen: dict[str, Any], masks: Path, name: str) -> None:
    whole = load_file(masks / f"{name}.safetensors")
    first, second = (rank["rows"] for rank in seen[name])
    assert all(first[key] + second[key] == len(weight) for key, weight in whole.items())
    assert any(first[key] != second[key] for key in whole)


def test_shards_may_be_uneven_or_empty(seen: dict[str, Any]) -> None:
    first, second = (rank["rows"] for rank in seen["fsdp2"])
    name = "transformer.wte.weight"  # tied to lm_head
    assert (first[name], second[name]) == (49, 48)
    assert "lm_head.weight" not in first
    _, second = (rank["rows"] for rank in seen["fsdp2_empty_shard"])
    assert second["vit.embeddings.cls_token"] == 0


# ---- ranking by rows -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    output = results_of("ranking_worker.py", tmp_path_factory)
    ranks: list[dict[str, Any]] = json.loads((output / "results.json").read_text())
    assert len(ranks) == NUM_PROCESSES
    return ranks


@pytest.mark.slow
@pytest.mark.parametrize("settings", ranking_worker.SETTINGS)
@pytest.mark.parametrize("host", ranking_worker.HOSTS)
def test_rows_ranked_apart_give_the_generations_of_the_whole(
    ranked: list[dict[str, Any]], host: str, settings: str
) -> None:
    for rank in ranked:
        run = rank["runs"][host]
        assert run["found"][settings] == run["expected"][settings]
        assert len(set(run["found"][settings])) == 2
        assert run["gathered"] == []


@pytest.mark.slow
def test_weights_that_diverged_on_one_rank_are_refused_on_all(
    ranked: list[dict[str, Any]],
) -> None:
    for rank in ranked:
        assert rank["diverged"].startswith("'transformer.h.0.mlp.c_fc.weight' has NaN scores")


# ---- evolution -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return results_of("generations_worker.py", tmp_path_factory)


@pytest.fixture(scope="module")
def evolved(generations: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((generations / "results.json").read_text())
    return results


def test_ranks_evolve_the_same_connectome_and_weights(evolved: dict[str, Any]) -> None:
    first, second = evolved["whole"]
    assert first["world_size"] == NUM_PROCESSES
    assert first["distributed"].endswith("MULTI_CPU")
    assert (first["generation"], first["step"], first["leaks"]) == (2, 8, 0)
    assert len(first["losses"]) == 8
    assert first == second


def test_generations_are_saved_once_and_whole(evolved: dict[str, Any], generations: Path) -> None:
    outcome = evolved["whole"][0]
    saved = [
        Connectome.from_pretrained(generations / "whole" / f"generation-{number}")
        for number in range(3)
    ]
    assert saved[2].digest == outcome["connectome"]
    assert [c.digest for c in saved[:2]] == [row["digest"] for row in outcome["lineage"]]
    assert [c.num_survivors for c in saved[:2]] == [
        row["num_survivors"] for row in outcome["lineage"]
    ]
    assert saved[0].density == 1.0


def test_an_interrupted_run_was_interrupted(evolved: dict[str, Any]) -> None:
    assert [rank["step"] for rank in evolved["interrupted"]] == [5, 5]
    assert evolved["interrupted"][0]["weights"] != evolved["whole"][0]["weights"]


@pytest.mark.parametrize("resumed", ["resumed", "boundary"])
def test_a_resumed_run_equals_the_whole_one_to_the_bit(
    evolved: dict[str, Any], resumed: str
) -> None:
    assert evolved[resumed] == evolved["whole"]


@pytest.mark.parametrize("criterion", ["movement", "taylor"])
def test_ranks_agree_on_what_a_criterion_needs_measured(
    evolved: dict[str, Any], criterion: str
) -> None:
    first, second = evolved[criterion]
    assert first == second
    assert first["connectome"] != evolved["whole"][0]["connectome"]
    assert first["num_survivors"] == evolved["whole"][0]["num_survivors"]


def test_a_rank_that_went_astray_stops_all_ranks(
    evolved: dict[str, Any], generations: Path
) -> None:
    for message in evolved["astray"]:
        assert message.startswith("the ranks disagree on generation 1: digests [")
        assert "check that every rank has the same data and software" in message
    folders = {path.name for path in (generations / "astray").glob("generation-*")}
    assert folders == {"generation-0"}  # what they disagree on is not saved


# ---- rewiring ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rewired(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = results_of("rewiring_worker.py", tmp_path_factory)
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


@pytest.mark.slow
@pytest.mark.parametrize("spec", rewiring_worker.METHODS)
def test_ranks_move_the_same_links(rewired: dict[str, Any], spec: str) -> None:
    first, second = rewired[spec]
    assert first["world_size"] == NUM_PROCESSES
    assert first["changed"]
    assert [r["step"] for r in first["moved"]] == [2, 4]
    assert first == second


@pytest.mark.slow
@pytest.mark.parametrize("spec", rewiring_worker.METHODS)
def test_two_processes_move_the_links_that_one_moves(
    rewired: dict[str, Any], spec: str, tmp_path: Path
) -> None:
    alone = rewiring_worker.train(spec, tmp_path, 1)
    masks = rewired[spec][0]["masks"]
    differing = sum(
        (int(masks[name], 16) ^ int(bits, 16)).bit_count() for name, bits in alone["masks"].items()
    )
    # Gradients are summed in another order, so that a link on the brink may be another.
    assert differing <= 4
    assert alone["moved"][0]["births"] > 20


# ---- other outer loops ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loops(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = results_of("outer_loops_worker.py", tmp_path_factory)
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["iht", "search"])
def test_ranks_find_the_same_connectome_by_every_loop(loops: dict[str, Any], loop: str) -> None:
    first, second = loops[loop]
    assert (first["world_size"], first["generation"], len(first["lineage"])) == (
        NUM_PROCESSES,
        2,
        2,
    )
    assert first == second


@pytest.mark.slow
def test_thresholds_leave_no_dead_weight_on_any_rank(loops: dict[str, Any]) -> None:
    assert [rank["leaks"] for rank in loops["iht"]] == [0, 0]


@pytest.mark.slow
def test_thresholds_resumed_on_two_ranks_equal_the_whole_run(loops: dict[str, Any]) -> None:
    assert loops["resumed"] == loops["iht"]


@pytest.mark.slow
def test_a_rank_whose_largest_weights_differ_stops_all_ranks(loops: dict[str, Any]) -> None:
    for message in loops["astray"]:
        assert message.startswith("the ranks disagree on generation 1: digests [")


# ---- gradients of survivors alone ----------------------------------------------------------------


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = results_of("survivors_worker.py", tmp_path_factory)
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


@pytest.mark.parametrize("name", survivors_worker.RUNS)
def test_gradients_of_survivors_give_the_same_bits_as_whole_ones(
    exchanged: dict[str, Any], name: str
) -> None:
    runs = exchanged[name]["whole"] + exchanged[name]["survivors"]
    assert len({run["digest"] for run in runs}) == 1
    assert [run["dead"] for run in runs] == [0] * 2 * NUM_PROCESSES


@pytest.mark.parametrize("name", survivors_worker.RUNS)
def test_only_survivors_travel(exchanged: dict[str, Any], name: str) -> None:
    for run in exchanged[name]["survivors"]:
        assert run["num_bytes"] == run["packed_bytes"]
        density = survivors_worker.RUNS[name].density
        assert run["num_bytes"] <= (density + 0.05) * run["whole_bytes"]


def test_survivors_alone_evolve_the_same_connectome_and_weights(exchanged: dict[str, Any]) -> None:
    assert exchanged["evolved_lean"] == exchanged["evolved_dense"]
    assert exchanged["evolved_lean"][0]["generation"] == 2
