"""The two cards: of a connectome, and of a checkpoint that was trained from one."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from hf_connectome.cards.facts import architecture_of, model_type_of
from hf_connectome.cards.markup import front_matter, number, one_line
from hf_connectome.cards.results import ARM
from hf_connectome.cards.sections import (
    PLACEHOLDER,
    checkpoint_loading,
    checkpoint_opening,
    citation,
    density,
    facts,
    generation_links,
    limits,
    lineage,
    loading,
    measured,
    opening,
    training,
)
from hf_connectome.errors import ConfigError
from hf_connectome.hub import TAG
from hf_connectome.provenance import can_be_hub_id, hub_id, is_local_path

if TYPE_CHECKING:
    from hf_connectome.cards.results import Results
    from hf_connectome.connectome import Connectome
    from hf_connectome.provenance import Provenance

_PIPELINES = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForImageClassification": "image-classification",
}


def card(
    connectome: Connectome,
    *,
    repo_id: str | None = None,
    revision: str | None = None,
    tags: Collection[str] = (),
    file_bytes: Mapping[str, int] | None = None,
    provenance: Provenance | None = None,
    results: Results | None = None,
    license: str | None = None,
    base_model: str | None = None,
    tokenizer_repo: str | None = None,
    parent: str | None = None,
    figure: str | None = None,
) -> str:
    """Return the model card of a connectome: its YAML head and Markdown.

    What is not known is left out or stated as unknown; no local path gets in.

    Args:
        connectome: whose card it is.
        repo_id: Hub id of its repository; without it the snippets name a placeholder.
        revision: tag of this very connectome, such as ``generation-6``.
        tags: tags of the repository; the generations among them become links.
        file_bytes: codec -> bytes of the connectome's file.
        provenance: of the run that evolved it.
        results: of arms that inherited it.
        license: identifier of the Hub, such as ``apache-2.0``.
        base_model: Hub id of the model that it was found in, if there is one.
        tokenizer_repo: Hub id of its tokenizer; by default the recorded one.
        parent: Hub id of the connectome that its evolution went on from.
        figure: name of a picture in the same folder.

    Raises:
        ConfigError: an argument cannot be what it should be, or the results are another's.
    """
    _check_ids(repo_id=repo_id, base_model=base_model, parent=parent, tokenizer_repo=tokenizer_repo)
    _check_words(revision=revision, license=license, figure=figure)
    _check_results(connectome, results)
    head = _head(connectome, provenance, license, base_model, results)
    links = generation_links(repo_id, {*tags, *([revision] if revision else [])})
    return _joined(
        [head, f"# {_title(repo_id, 'A connectome')}", opening(connectome)],
        loading(connectome, repo_id, revision),
        facts(connectome, file_bytes or {}, tokenizer_repo),
        lineage(connectome, links, parent),
        density(connectome, figure),
        measured(results),
        limits(connectome, results),
        training(provenance),
        citation(connectome),
    )


def checkpoint_card(
    connectome: Connectome,
    *,
    parent_repo: str | None = None,
    parent_revision: str | None = None,
    repo_id: str | None = None,
    loss: float | None = None,
    provenance: Provenance | None = None,
    license: str | None = None,
) -> str:
    """Return the model card of a checkpoint that was trained from a connectome, zeros in place.

    Args:
        connectome: the one in the checkpoint's ``connectome`` folder.
        parent_repo: Hub id of the connectome's own repository.
        parent_revision: tag or commit there.
        repo_id: Hub id of the checkpoint's repository.
        loss: held-out loss of the checkpoint, nats a token.
        provenance: of the checkpoint's training.
        license: identifier of the Hub.

    Raises:
        ConfigError: an argument cannot be what it should be.
    """
    _check_ids(parent_repo=parent_repo, repo_id=repo_id)
    _check_words(parent_revision=parent_revision, license=license)
    found = f"Held-out loss: {number(loss, '.3f')} nats a token."
    return _joined(
        [
            _checkpoint_head(connectome, provenance, license, parent_repo),
            f"# {_title(repo_id, 'A trained sparse checkpoint')}",
            checkpoint_opening(connectome, parent_repo, parent_revision),
        ],
        checkpoint_loading(connectome, repo_id or PLACEHOLDER),
        facts(connectome, None),
        ["## Results", "Not measured." if loss is None else found],
        training(provenance),
        citation(connectome),
    )


# ---- what was given ------------------------------------------------------------------------------


def _check_ids(**ids: str | None) -> None:
    for name, value in ids.items():
        if value is not None and not can_be_hub_id(value):
            shown = "a local path" if is_local_path(value) else repr(one_line(value, 80))
            raise ConfigError(
                f"{name} is {shown}; expected a Hub id ('name' or 'owner/name'). Leave it out if "
                "there is none."
            )


def _check_words(**words: str | None) -> None:
    for name, value in words.items():
        # No slash begins it, no blank or quote can end a snippet's string.
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][\w.+/-]{0,99}", value, re.ASCII):
            raise ConfigError(
                f"{name} is {one_line(value, 80)!r}; expected up to 100 letters, digits and .+-_/."
            )


def _check_results(connectome: Connectome, results: Results | None) -> None:
    if results is not None and results.digest not in (None, connectome.digest):
        raise ConfigError(
            f"the results are of the connectome {one_line(results.digest, 12)}, this one is "
            f"{connectome.digest[:12]}. Give the results of this connectome, or none."
        )
    own = (connectome.num_survivors, connectome.num_weights)
    for run in results.runs if results is not None else ():
        if run.arm == ARM and (run.num_survivors, run.num_weights) != own:
            raise ConfigError(
                f"the results are of a connectome of {run.num_survivors} of {run.num_weights} "
                f"weights, this one has {own[0]} of {own[1]}. Give the results of this connectome."
            )


# ---- heads ---------------------------------------------------------------------------------------


def _head(
    connectome: Connectome,
    provenance: Provenance | None,
    license: str | None,
    base_model: str | None,
    results: Results | None,
) -> str:
    return front_matter(
        library_name="hf_connectome",
        tags=[TAG, "model-connectome", "sparse", "peft", *_type_tag(connectome)],
        license=license,
        base_model=base_model,
        datasets=_datasets(provenance),
        metrics=["loss"] if results is not None else None,
    )


def _checkpoint_head(
    connectome: Connectome, provenance: Provenance | None, license: str | None, parent: str | None
) -> str:
    architecture = architecture_of(connectome) or ""
    tasks = [task for end, task in _PIPELINES.items() if architecture.endswith(end)]
    return front_matter(
        library_name="transformers",
        # Not the tag of connectomes: whoever searches for one would find what is none.
        tags=["model-connectome", "sparse", *_type_tag(connectome)],
        license=license,
        base_model=parent,
        datasets=_datasets(provenance),
        pipeline_tag=tasks[0] if tasks else None,
    )


def _type_tag(connectome: Connectome) -> list[str]:
    model_type = model_type_of(connectome)
    return [model_type] if model_type else []


def _datasets(provenance: Provenance | None) -> list[str] | None:
    dataset = hub_id(provenance.dataset) if provenance is not None else None
    return [dataset] if dataset else None


def _title(repo_id: str | None, otherwise: str) -> str:
    return repo_id.rpartition("/")[2] if repo_id else otherwise


def _joined(*sections: Iterable[str]) -> str:
    return "\n\n".join(part for section in sections for part in section) + "\n"
