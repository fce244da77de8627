"""How unexpected each word of a text is to a causal language model: -log p(word | words before).

Not for masked or encoder-decoder models: what comes after a word must not tell about it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_connectome.errors import (
    ConfigError,
    DataError,
    HostMismatchError,
    UnknownNameError,
    did_you_mean,
)

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_NATS_PER = {"nats": 1.0, "bits": math.log(2)}
_LEAKS = 1e-3  # of the largest logit; a causal model stays far below, rounding included


def word_surprisals(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    words: Sequence[Sequence[str]],
    texts: Sequence[str] | None = None,
    *,
    unit: str = "nats",
    context: int | None = None,
    min_context: int | None = None,
    batch_size: int = 8,
) -> list[npt.NDArray[np.float64]]:
    """Sum the surprisals of the tokens of every word.

    A token belongs to the word that holds its first character that is no space: the space before a
    word is part of the word, a token over two words counts for the first, bytes of one character
    for the word that it is in. Before the text stands the tokenizer's beginning-of-sequence token;
    where it has none, the first word is NaN. A text longer than the context is read in windows that
    overlap, see ``token_surprisals``; later ones begin in the middle of the text, as blocks of
    training do.

    Args:
        model: Causal; it is read in evaluation mode, on the device that it is on.
        tokenizer: Made by the tokenizers library, which knows the characters of a token.
        words: Per text, its words in order.
        texts: Per text, what the words stand in with only spaces between; None joins them by one
            space.
        unit: 'nats' or 'bits' (nats / log 2).
        context: Tokens that the model sees at most; None takes all that it has positions for.
        min_context: Tokens before a token at least, where the text has them; None: half of context.
        batch_size: Windows in one forward pass.

    Returns:
        Per text ``(words,)``, in ``unit``, 0 or more.

    Raises:
        DataError: A word that is not in its text or that no token begins in.
        ConfigError: A context that the model does not have, or a model that is not causal.
        HostMismatchError: The tokenizer has ids that the model has no embedding for.
        UnknownNameError: Another unit.

    Source: Smith & Levy 2013, "The effect of word predictability on reading time is logarithmic",
    Cognition 128: surprisal; the windows are ours.
    """
    if unit not in _NATS_PER:
        raise UnknownNameError(f"unit is {unit!r}. {did_you_mean(unit, _NATS_PER)}")
    texts = [" ".join(w) for w in words] if texts is None else texts
    if len(words) != len(texts):
        raise DataError(f"{len(words)} lists of words come with {len(texts)} texts; expected one.")
    bos = tokenizer.bos_token_id
    before = [] if bos is None else [bos]
    tokenized = [_tokens_of_words(tokenizer, w, t) for w, t in zip(words, texts, strict=True)]
    sequences = [[*before, *ids] for ids, _ in tokenized]
    reading: dict[str, Any] = {"context": context, "min_context": min_context}
    values = token_surprisals(model, sequences, batch_size=batch_size, **reading)
    results = []
    for value, (_, owner), chosen in zip(values, tokenized, words, strict=True):
        total = np.zeros(len(chosen))
        np.add.at(total, owner[owner >= 0], value[len(before) :][owner >= 0])
        results.append(total / _NATS_PER[unit])
    return results


def token_surprisals(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    *,
    context: int | None = None,
    min_context: int | None = None,
    batch_size: int = 8,
) -> list[npt.NDArray[np.float64]]:
    """Give every token its surprisal after the tokens before it.

    A sequence of up to ``context + 1`` tokens is read in one pass. A longer one is read in windows
    of that many: each begins ``min_context`` tokens before the first token that is still to be
    scored, and the last one is moved back so that it is full.

    Args:
        model: Causal.
        sequences: Token ids.
        context: Tokens that the model sees at most; None takes all that it has positions for.
        min_context: From 1 to ``context``; None is half of it.
        batch_size: Windows in one forward pass.

    Returns:
        Per sequence ``(tokens,)`` nats; the first token is NaN, since nothing predicts it.

    Raises:
        ConfigError: A context that the model does not have, or a model that is not causal.
        HostMismatchError: An id that the model has no embedding for.
        DataError: The model gives a number that is not finite.
    """
    size = _context(model, context)
    least = _min_context(size, min_context)
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; expected at least 1.")
    check_ids(model, sequences)
    results = [np.full(len(sequence), math.nan) for sequence in sequences]
    windows = [w for i, s in enumerate(sequences) for w in _windows(i, len(s), size, least)]
    with evaluating(model), torch.inference_mode():
        _check_causal(model)
        for first in range(0, len(windows), batch_size):
            batch = windows[first : first + batch_size]
            _score(model, sequences, batch, results)
    for index, result in enumerate(results):
        if not np.isfinite(result[1:]).all():
            bad = 1 + int(np.argmin(np.isfinite(result[1:])))
            raise DataError(
                f"the model gives token {bad} of text {index} a surprisal of {result[bad]}; "
                "expected a finite number. Its weights are damaged, or its dtype is too narrow: "
                "load it in float32."
            )
    return results


def locate(words: Sequence[str], text: str) -> list[tuple[int, int]]:
    """Find where words begin and end in a text that holds them in order, with only space between.

    Raises:
        DataError: The text goes on differently; the word, its number and what stands there.

    Example:
        >>> locate(["To", "be,"], " To  be,")
        [(1, 3), (5, 8)]
    """
    spans, end = [], 0
    for number, word in enumerate(words, start=1):
        begin = end
        while begin < len(text) and text[begin].isspace():
            begin += 1
        if not word or not text.startswith(word, begin):
            raise DataError(
                f"word {number} is {word!r}, but the text goes on with "
                f"{text[end : end + len(word) + 12]!r}. Words and text must agree letter by "
                "letter, punctuation included."
            )
        end = begin + len(word)
        spans.append((begin, end))
    if text[end:].strip():
        raise DataError(
            f"the text goes on with {text[end : end + 24]!r} after its last word, number "
            f"{len(words)}. Add the words to the table, or shorten the text."
        )
    return spans


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Switch dropout off, and put every module back as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def padded(sequences: Sequence[Sequence[int]], device: torch.device) -> dict[str, torch.Tensor]:
    """Lay sequences on the left of a rectangle; the mask says which cells are real."""
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)  # (B, T)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def context_length(model: PreTrainedModel) -> int | None:
    """Tokens that the model has positions for, None where its config names no limit."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def check_ids(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> None:
    """Refuse ids that the model has no embedding for, and sequences without a token.

    Raises:
        HostMismatchError: The largest id and the number of embeddings.
        DataError: A text without a token, or no text.
    """
    if not sequences:
        raise DataError("there is no text; expected at least one.")
    for index, sequence in enumerate(sequences):
        if not sequence:
            raise DataError(f"text {index} has no token; expected at least one. Leave it out.")
    largest = max(map(max, sequences))
    weight: Any = model.get_input_embeddings().weight
    if largest >= weight.shape[0]:
        raise HostMismatchError(
            f"the tokenizer gives token {largest}, but the model has {weight.shape[0]} embeddings. "
            "Use the tokenizer that the model was trained with."
        )


@dataclass(frozen=True)
class _Window:
    """Tokens ``[start, end)`` of a sequence, of which those from ``first`` on are scored."""

    sequence: int
    start: int
    first: int
    end: int


def _windows(sequence: int, length: int, size: int | None, least: int) -> Iterator[_Window]:
    longest = length if size is None else size + 1
    first = 1
    while first < length:
        start = 0 if first == 1 else max(0, min(first - least, length - longest))
        end = min(start + longest, length)
        yield _Window(sequence, start, first, end)
        first = end


def _score(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    windows: Sequence[_Window],
    results: list[npt.NDArray[np.float64]],
) -> None:
    inputs = [sequences[w.sequence][w.start : w.end - 1] for w in windows]
    logits = model(**padded(inputs, model.device), use_cache=False).logits  # (B, T, V)
    for row, window in zip(logits, windows, strict=True):
        targets = torch.tensor(sequences[window.sequence][window.first : window.end]).to(row.device)
        offset = window.first - window.start - 1
        scores = row[offset : offset + len(targets)].float()  # (scored, V)
        chosen = scores.gather(1, targets[:, None])[:, 0]
        surprisals = torch.logsumexp(scores, dim=1).double() - chosen.double()
        # Rounding can put the sum of all a hair below its largest term.
        results[window.sequence][window.first : window.end] = surprisals.clamp(min=0).cpu().numpy()


def _context(model: PreTrainedModel, context: int | None) -> int | None:
    most = context_length(model)
    if context is not None and not 2 <= context <= (most or context):
        raise ConfigError(
            f"context is {context} tokens, the model has {most or 'any number of'} positions; "
            f"expected 2 to {most or 'any number'}. Leave context out to use all."
        )
    return most if context is None else context


def _min_context(size: int | None, min_context: int | None) -> int:
    if min_context is None:
        return 1 if size is None else max(1, size // 2)
    if min_context < 1 or (size is not None and min_context > size):
        raise ConfigError(
            f"min_context is {min_context} tokens with a context of {size}; expected 1 to the "
            "context. Half of the context is the default."
        )
    return min_context


def _check_causal(model: PreTrainedModel) -> None:
    """Change the last of four tokens: the outputs before it may not move."""
    if model.config.is_encoder_decoder:
        raise ConfigError(
            f"{type(model).__name__} is an encoder-decoder; expected a causal language model. Load "
            "one with AutoModelForCausalLM."
        )
    length = min(4, context_length(model) or 4)
    pair = torch.zeros(2, length, dtype=torch.long, device=model.device)
    pair[1, -1] = 1
    output = model(input_ids=pair, attention_mask=torch.ones_like(pair), use_cache=False)
    before = output.logits[:, :-1].float()
    moved = float((before[0] - before[1]).abs().max())
    if moved > _LEAKS * float(before.abs().max()):
        raise ConfigError(
            f"{type(model).__name__} is not causal: another last token moves the outputs before it "
            f"by {moved:.2g}; expected 0. Load a causal language model (AutoModelForCausalLM)."
        )


def _tokens_of_words(
    tokenizer: PreTrainedTokenizerFast, words: Sequence[str], text: str
) -> tuple[list[int], npt.NDArray[np.int64]]:
    """Give the ids of a text and, for each, the number of its word; -1 for none."""
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            f"{type(tokenizer).__name__} is not made by the tokenizers library, so the characters "
            "of its tokens are unknown. Load it with AutoTokenizer."
        )
    spans = locate(words, text)
    # verbose=False: a text longer than the context is expected here.
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = [end for _, end in spans]
    owner = np.full(len(encoded["input_ids"]), -1, dtype=np.int64)
    for index, (begin, _) in enumerate(encoded["offset_mapping"]):
        # The first word that ends later: between words there is only space, which goes to the next.
        word = bisect_right(ends, begin)
        owner[index] = word if word < len(words) else -1
    without = sorted(set(range(len(words))) - set(owner.tolist()))
    if without:
        raise DataError(
            f"no token begins in word {without[0] + 1}, {words[without[0]]!r}: the tokenizer "
            "drops its characters or merges it with the word before. Use a tokenizer that splits "
            "at spaces and keeps all characters, or join the words in the table."
        )
    return list(encoded["input_ids"]), owner
