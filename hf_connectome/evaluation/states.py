"""What a model holds after each sentence, layer by layer, and which of its units prefer sentences.

Not how well that predicts a brain: ``brain`` measures it.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from hf_connectome.errors import ConfigError, DataError
from hf_connectome.evaluation.surprisal import check_ids, context_length, evaluating, padded

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    States = npt.NDArray[np.float32]
    Units = list[tuple[int, int]]

_MOST_DEALS = 20


def last_token_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    sentences: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    context: int | None = None,
    batch_size: int = 32,
) -> dict[int, States]:
    """Take the hidden state at the last token of every sentence.

    The last token is that of what the tokenizer makes of the sentence, special tokens included.
    Sentences of a batch are padded on the right behind a mask, so a state does not depend on its
    batch; a sentence longer than the context keeps its end.

    Args:
        model: With hidden states: a causal model or an encoder.
        tokenizer: The one that the model was trained with.
        sentences: Texts.
        layers: 0 is the embeddings, k the output of block k (with the final norm for the last, as
            transformers has it), negative counts from the end; None takes all.
        context: Tokens that are read at most; None takes all that the model has positions for.
        batch_size: Sentences in one forward pass.

    Returns:
        Per layer ``(sentences, hidden)``, finite.

    Raises:
        ConfigError: No such layer or context, or an encoder-decoder.
        HostMismatchError: The tokenizer has ids that the model has no embedding for.
        DataError: A sentence without a token, or a state that is not finite.
    """
    if model.config.is_encoder_decoder:
        raise ConfigError(
            f"{type(model).__name__} is an encoder-decoder, which has two last tokens; expected a "
            "causal model or an encoder. Pass model.get_encoder()."
        )
    most = context_length(model)
    if batch_size < 1 or (context is not None and not 1 <= context <= (most or context)):
        raise ConfigError(
            f"batch_size is {batch_size} and context {context}; expected at least 1, and a context "
            f"of at most the model's {most or 'any number of'} positions."
        )
    length = most if context is None else context
    ids = [list(tokenizer(s, verbose=False)["input_ids"]) for s in sentences]
    ids = [row if length is None else row[-length:] for row in ids]
    check_ids(model, ids)
    states = _read(model, ids, layers, batch_size)
    for layer, found in states.items():
        if not np.isfinite(found).all():
            row = int(np.argmin(np.isfinite(found).all(1)))
            raise DataError(
                f"layer {layer} has a state that is not finite after {sentences[row]!r}; expected "
                "numbers. The weights are damaged, or the dtype is too narrow: load in float32."
            )
    return states


def language_units(
    sentences: Mapping[int, States], nonwords: Mapping[int, States], *, fraction: float = 0.01
) -> Units:
    """Find the units that respond to sentences most strongly over strings of non-words.

    Args:
        sentences: Per layer ``(sentences, hidden)``.
        nonwords: Per layer ``(strings, hidden)``, the same layers.
        fraction: Of all units of all layers, in (0, 1]; at least one unit is taken.

    Returns:
        (layer, unit) pairs, the strongest first; equals in order of layer and unit.

    Raises:
        ConfigError: A fraction outside its range.
        DataError: Fewer than two texts of a kind.

    Source: AlKhamissi et al. 2025, "The LLM language network" (arXiv 2411.02280): "the top-k units
    that maximize the difference in activation magnitude between sentences and strings of non-words,
    measured by positive t-values from a Welch's t-test".
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction is {fraction}; expected above 0 and at most 1, such as 0.01.")
    layers = list(sentences)
    found = []
    for layer in layers:
        left, right = (np.abs(s[layer].astype(np.float64)) for s in (sentences, nonwords))
        if min(len(left), len(right)) < 2:
            raise DataError(
                f"{len(left)} sentences and {len(right)} strings of non-words; a contrast needs at "
                "least 2 of each."
            )
        noise = np.sqrt(left.var(0, ddof=1) / len(left) + right.var(0, ddof=1) / len(right))
        gap = left.mean(0) - right.mean(0)
        found.append(np.divide(gap, noise, out=np.zeros_like(gap), where=noise > 0))
    owners = [
        (layer, unit) for layer, t in zip(layers, found, strict=True) for unit in range(len(t))
    ]
    count = max(1, round(fraction * len(owners)))
    order = np.argsort(-np.concatenate(found), kind="stable")
    return [owners[i] for i in order[:count]]


def nonwords(sentences: Sequence[str], *, seed: int = 0) -> list[str]:
    """Deal the letters of every sentence anew over its words: same letters, same lengths, no words.

    Spaces and punctuation stay where they are. Dealt again, up to 20 times, while a string of two
    letters or more is a word of the sentences.

    Args:
        sentences: Texts.
        seed: Of the deals; a sentence is dealt alike wherever it stands.

    Returns:
        One string per sentence.

    Example:
        >>> nonwords(["The cat sat."])
        ['Tah ste atc.']
    """
    known = {w for s in sentences for w in _words(s) if len(w) > 1}
    results = []
    for sentence in sentences:
        source = random.Random(f"{seed}:{sentence}")
        places = [i for i, character in enumerate(sentence) if character.isalpha()]
        letters = [sentence[i].lower() for i in places]
        for _ in range(_MOST_DEALS):
            source.shuffle(letters)
            dealt = list(sentence)
            for place, letter in zip(places, letters, strict=True):
                dealt[place] = letter.upper() if sentence[place].isupper() else letter
            if known.isdisjoint(_words("".join(dealt))):
                break
        results.append("".join(dealt))
    return results


def untrained_twin(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Build a fresh model of the same class and config, on the same device and in the same dtype.

    Args:
        model: Stays as it is; an adapter or connectome on it is left out.
        seed: Of the initialisation; torch's global generators are put back afterwards.
    """
    base = _base(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin: Any = type(base)(copy.deepcopy(base.config))
    return cast("PreTrainedModel", twin.to(device=base.device, dtype=base.dtype))


def _base(model: PreTrainedModel) -> Any:
    """Give the model under an adapter, or the model itself."""
    wrapped: Any = model
    return wrapped.get_base_model() if hasattr(model, "get_base_model") else wrapped


def _words(text: str) -> list[str]:
    kept = "".join(c.lower() if c.isalpha() else " " for c in text)
    return kept.split()


def _read(
    model: PreTrainedModel,
    ids: Sequence[Sequence[int]],
    layers: Sequence[int] | None,
    batch_size: int,
) -> dict[int, States]:
    taken: dict[int, list[torch.Tensor]] = {}
    with evaluating(model), torch.inference_mode():
        for first in range(0, len(ids), batch_size):
            batch = ids[first : first + batch_size]
            hidden = _hidden(model, batch)
            last = torch.tensor([len(row) - 1 for row in batch], device=hidden[0].device)
            rows = torch.arange(len(batch), device=last.device)
            for layer in _layers(layers, len(hidden)):
                taken.setdefault(layer, []).append(hidden[layer][rows, last].float().cpu())
    return {layer: torch.cat(parts).numpy() for layer, parts in taken.items()}


def _hidden(model: PreTrainedModel, batch: Sequence[Sequence[int]]) -> tuple[torch.Tensor, ...]:
    # An adapter may act on the layers in place, so the model under it is called.
    base = _base(model)
    inner = getattr(base, "base_model", base)  # without the head: logits are not needed
    output = inner(**padded(batch, base.device), output_hidden_states=True)
    hidden: tuple[torch.Tensor, ...] = output.hidden_states
    return hidden


def _layers(layers: Sequence[int] | None, num: int) -> list[int]:
    chosen = range(num) if layers is None else layers
    for layer in chosen:
        if not -num <= layer < num:
            raise ConfigError(
                f"layer {layer} is not one of the model's {num}; expected 0 (embeddings) to "
                f"{num - 1}, or -1 to {-num} from the end."
            )
    return list(dict.fromkeys(layer % num for layer in chosen))
