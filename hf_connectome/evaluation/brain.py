"""How well a model's states after a sentence predict the response of brain regions to it.

Beside every number stand what chance gives (sentences shuffled), what the architecture gives
without training, and the noise ceiling. Not for responses over time within a sentence.

Source: Schrimpf et al. 2021, "The neural architecture of language", PNAS 118: predictivity by
held-out linear regression. The published evaluation of Kotar & Tuckute 2025 takes the state of the
last token and ``RidgeCV`` in five folds shuffled with seed 0; the folds here are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_connectome.errors import ConfigError
from hf_connectome.evaluation.ridge import ALPHAS, cross_validated, folds
from hf_connectome.evaluation.states import (
    language_units,
    last_token_states,
    nonwords,
    untrained_twin,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from hf_connectome.evaluation.columns import Array
    from hf_connectome.evaluation.states import States
    from hf_connectome.evaluation.tables import SentenceTable

TRAINED = "trained"
LANGUAGE_UNITS = "language units"


@dataclass(frozen=True)
class BrainScore:
    """How well one set of features predicts one region.

    Attributes:
        model: 'trained', or 'untrained N' with N the seed of the fresh model.
        features: 'layer N' (0 is the embeddings), or 'language units'.
        num_features: How many.
        region: Column of the table.
        pearson_r: Of prediction and response in a fold left out, mean over folds.
        standard_error: Of that mean, over folds.
        fraction_of_ceiling: ``pearson_r`` over the noise ceiling, None if that is unknown.
        shuffled_mean: Mean of the same number when responses go with other sentences; None without
            shuffles, as the next two.
        shuffled_low: 2.5 % quantile of it over shuffles.
        shuffled_high: 97.5 % quantile.
        alphas: Per fold, the penalty that was chosen inside it.
    """

    model: str
    features: str
    num_features: int
    region: str
    pearson_r: float
    standard_error: float
    fraction_of_ceiling: float | None
    shuffled_mean: float | None
    shuffled_low: float | None
    shuffled_high: float | None
    alphas: list[float]


@dataclass(frozen=True)
class BrainResult:
    """The scores of all features and regions, and how they were found.

    Attributes:
        scores: One per model, features and region. The best of many layers is a choice made on the
            same data: fix the layer beforehand, or report all.
        num_sentences: Rows of the table.
        num_folds: Of the cross-validation.
        grouped: Whether groups of sentences stayed together.
        num_shuffles: How often responses were given to other sentences.
        seed: Of folds, shuffles and non-words.
        noise_ceilings: Per region, None if unknown.
        language_units: (layer, unit) pairs of the trained model, None if not asked for.
    """

    scores: list[BrainScore]
    num_sentences: int
    num_folds: int
    grouped: bool
    num_shuffles: int
    seed: int
    noise_ceilings: dict[str, float] | None
    language_units: list[tuple[int, int]] | None

    def score(self, region: str, features: str, model: str = TRAINED) -> BrainScore:
        """Return one score by its names."""
        for found in self.scores:
            if (found.region, found.features, found.model) == (region, features, model):
                return found
        raise ConfigError(
            f"there is no score of {features!r} of the {model!r} model for {region!r}; the first "
            f"of {len(self.scores)} is that of {self.scores[0].features!r} of the "
            f"{self.scores[0].model!r} model for {self.scores[0].region!r}."
        )

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        result = asdict(self)
        if self.language_units is not None:
            result["language_units"] = [list(pair) for pair in self.language_units]
        return result


@dataclass(frozen=True)
class _Reading:
    """What every model reads, and how."""

    tokenizer: PreTrainedTokenizerFast
    sentences: list[str]
    localizer: tuple[Sequence[str], Sequence[str]]
    unit_fraction: float | None
    context: int | None
    batch_size: int

    def features(
        self, model: PreTrainedModel, layers: Sequence[int] | None
    ) -> tuple[dict[str, States], list[tuple[int, int]] | None]:
        """Give the states of the layers and of the language units, and which units these are."""
        states = self._states(model, self.sentences, layers)
        features = {f"layer {layer}": state for layer, state in states.items()}
        if self.unit_fraction is None:
            return features, None
        preferred, others = (self._states(model, texts, None) for texts in self.localizer)
        # Units are outputs of blocks: the embedding of the last token has read no sentence.
        units = language_units(
            {k: v for k, v in preferred.items() if k > 0},
            {k: v for k, v in others.items() if k > 0},
            fraction=self.unit_fraction,
        )
        own = preferred
        if list(self.localizer[0]) != self.sentences:
            own = self._states(model, self.sentences, None)
        chosen = np.stack([own[layer][:, unit] for layer, unit in units], axis=1)
        return features | {LANGUAGE_UNITS: chosen}, units

    def _states(
        self, model: PreTrainedModel, texts: Sequence[str], layers: Sequence[int] | None
    ) -> dict[int, States]:
        options: dict[str, Any] = {"context": self.context, "batch_size": self.batch_size}
        return last_token_states(model, self.tokenizer, texts, layers=layers, **options)


def neural_predictivity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    table: SentenceTable,
    *,
    layers: Sequence[int] | None = None,
    num_folds: int = 5,
    seed: int = 0,
    alphas: Sequence[float] = ALPHAS,
    num_shuffles: int = 20,
    untrained_seeds: Sequence[int] = (0,),
    unit_fraction: float | None = 0.01,
    localizer: tuple[Sequence[str], Sequence[str]] | None = None,
    context: int | None = None,
    batch_size: int = 32,
) -> BrainResult:
    """Predict the responses of regions from the states of a model at the last token.

    Args:
        model: A causal model or an encoder.
        tokenizer: Its own.
        table: Sentences and responses.
        layers: As in ``last_token_states``; None takes all.
        num_folds: Of the cross-validation; groups of the table stay together.
        seed: Of folds, shuffles and non-words.
        alphas: Ridge penalties; each region's is chosen inside the fitted part of each fold.
        num_shuffles: How often responses are given to other sentences; 0 for none.
        untrained_seeds: Fresh models of the same architecture to stand beside it.
        unit_fraction: Of the units of all blocks, those that prefer sentences; None for not.
        localizer: Sentences and strings of non-words, which find those units without a response;
            None takes the table's sentences and ``nonwords`` of them.
        context: Tokens that are read at most.
        batch_size: Sentences in one forward pass.

    Raises:
        DataError: Fewer sentences (or groups) than folds, or texts that the model cannot read.
        ConfigError: A setting outside its range.
    """
    responses = _with_shuffles(table.responses, num_shuffles, seed)
    parts = folds(len(table.sentences), num_folds, seed, table.groups)
    localizer = localizer or (table.sentences, nonwords(table.sentences, seed=seed))
    reading = _Reading(tokenizer, table.sentences, localizer, unit_fraction, context, batch_size)
    scores: list[BrainScore] = []
    found = []
    for name, network in _models(model, untrained_seeds):
        features, units = reading.features(network, layers)
        found.append(units)
        for label, values in features.items():
            fitted = cross_validated(values.astype(np.float64), responses, parts, alphas)
            scores += _scores(name, label, values.shape[1], table, *fitted)
    return BrainResult(
        scores=scores,
        num_sentences=len(table.sentences),
        num_folds=num_folds,
        grouped=table.groups is not None,
        num_shuffles=num_shuffles,
        seed=seed,
        noise_ceilings=table.ceilings,
        language_units=found[0],
    )


def _models(
    model: PreTrainedModel, untrained_seeds: Sequence[int]
) -> Iterator[tuple[str, PreTrainedModel]]:
    yield TRAINED, model
    for seed in untrained_seeds:
        yield f"untrained {seed}", untrained_twin(model, seed)


def _with_shuffles(responses: Array, num: int, seed: int) -> Array:
    """Put rows in another order, all regions alike, ``num`` times beside the true responses."""
    if num < 0:
        raise ConfigError(f"num_shuffles is {num}; expected 0 or more.")
    generator = np.random.default_rng(seed)
    shuffled = [responses[generator.permutation(len(responses))] for _ in range(num)]
    return np.concatenate([responses, *shuffled], axis=1)  # (sentences, regions * (1 + num))


def _scores(
    model: str,
    features: str,
    num_features: int,
    table: SentenceTable,
    found: Array,
    alphas: Array,
) -> Iterator[BrainScore]:
    """Take the columns of ``_with_shuffles`` apart again; ``found`` is ``(folds, columns)``."""
    num = len(table.regions)
    means = found.mean(0)
    for index, region in enumerate(table.regions):
        null = means[index + num :: num]
        low, high = np.quantile(null, (0.025, 0.975)).tolist() if len(null) else (None, None)
        r = float(means[index])
        yield BrainScore(
            model=model,
            features=features,
            num_features=num_features,
            region=region,
            pearson_r=r,
            standard_error=float(found[:, index].std(ddof=1)) / math.sqrt(len(found)),
            fraction_of_ceiling=r / table.ceilings[region] if table.ceilings else None,
            shuffled_mean=float(null.mean()) if len(null) else None,
            shuffled_low=low,
            shuffled_high=high,
            alphas=alphas[:, index].tolist(),
        )
