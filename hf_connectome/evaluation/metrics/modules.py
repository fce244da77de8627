"""Modules of Hugging Face's evaluate, built when asked for: nothing is downloaded, no script runs.

The formulas are in formulas.py; evaluate collects the rows, also over processes.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from hf_connectome.errors import ConfigError, DataError
from hf_connectome.evaluation.metrics import formulas
from hf_connectome.evaluation.ridge import ALPHAS

_PAPER = """@article{kotar2025model,
  title={Model Connectomes: A Generational Approach to Data-Efficient Language Models},
  author={Kotar, Klemen and Tuckute, Greta},
  journal={arXiv preprint arXiv:2504.21047},
  year={2025}
}"""


def _info(kind: str, description: str, inputs: str, **features: Any) -> Any:
    import datasets
    import evaluate

    return getattr(evaluate, kind)(
        description=description,
        citation=_PAPER,
        inputs_description=f"\n\nArgs:\n{inputs}",
        features=datasets.Features(features),
    )


def require_evaluate() -> None:
    """Refuse where evaluate is not installed.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("evaluate") is None:
        raise ConfigError(
            "evaluate is not installed, and this metric is a module of it. Install it: "
            "pip install 'hf_connectome[eval]'."
        )


def _number() -> Any:
    import datasets

    return datasets.Value("float64")


def _numbers() -> Any:
    import datasets

    return datasets.Sequence(datasets.Value("float64"))


@functools.cache
def bits_per_byte() -> Any:
    """Build the class BitsPerByte."""
    import evaluate

    class BitsPerByte(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
        """Code length of texts in bits a byte; independent of the tokenizer."""

        def _info(self) -> Any:
            return _info(
                "MetricInfo",
                "Negative log-likelihood of texts in bits a byte of UTF-8: models with different "
                "tokenizers can be compared. Lower is better.",
                "    predictions: nats, the summed negative log-likelihood of each text.\n"
                "    references: length of each text in bytes.\n",
                predictions=_number(),
                references=_number(),
            )

        def _compute(
            self, predictions: Sequence[float], references: Sequence[float]
        ) -> dict[str, float]:
            value = formulas.bits_per_byte(predictions, references)
            return {"bits_per_byte": value, "num_bytes": float(sum(references))}

    return BitsPerByte


@functools.cache
def reading_time_correlation() -> Any:
    """Build the class ReadingTimeCorrelation."""
    import evaluate

    class ReadingTimeCorrelation(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
        """Correlation of surprisal with reading times, plain and beside controls."""

        def _info(self) -> Any:
            return _info(
                "MetricInfo",
                "Pearson's r of word surprisals and reading times, and the partial r that controls "
                "such as word length and frequency leave.",
                "    predictions: surprisal of each word.\n"
                "    references: reading time of each word.\n"
                "    controls: a list of numbers for each word; may be left out.\n",
                predictions=_number(),
                references=_number(),
                controls=_numbers(),
            )

        def add(
            self, *, prediction: Any = None, reference: Any = None, controls: Any = None
        ) -> None:
            """Add one word; its controls may be left out."""
            super().add(prediction=prediction, reference=reference, controls=controls or [])

        def add_batch(
            self, *, predictions: Any = None, references: Any = None, controls: Any = None
        ) -> None:
            """Add words; controls may be left out of all of them."""
            if controls is None and predictions is not None:
                controls = [[] for _ in predictions]
            super().add_batch(predictions=predictions, references=references, controls=controls)

        def compute(
            self, *, predictions: Any = None, references: Any = None, controls: Any = None
        ) -> dict[str, float | None] | None:
            """Correlate all words that were added, and these."""
            if controls is None and predictions is not None:
                controls = [[] for _ in predictions]
            found: dict[str, float | None] | None = super().compute(
                predictions=predictions, references=references, controls=controls
            )
            return found

        def _compute(
            self,
            predictions: Sequence[float],
            references: Sequence[float],
            controls: Sequence[Sequence[float]],
        ) -> dict[str, float | None]:
            plain = formulas.pearson(predictions, references)
            partial = None
            if any(controls):
                partial = formulas.partial_pearson(predictions, references, controls)
            return {"pearson": plain, "partial_pearson": partial, "num_words": len(predictions)}

    return ReadingTimeCorrelation


@functools.cache
def neural_predictivity() -> Any:
    """Build the class NeuralPredictivity."""
    import evaluate

    class NeuralPredictivity(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
        """How well a ridge regression on a model's states predicts responses held out from it."""

        def _info(self) -> Any:
            return _info(
                "MetricInfo",
                "Pearson's r of responses with what a cross-validated ridge regression predicts "
                "from a model's states, averaged over folds and targets.",
                "    predictions: states, a list of numbers for each stimulus.\n"
                "    references: responses, a list of numbers for each stimulus.\n"
                "    num_folds: parts of the cross-validation, 5.\n"
                "    seed: of their draw, 0.\n"
                "    alphas: penalties to choose from.\n",
                predictions=_numbers(),
                references=_numbers(),
            )

        def _compute(
            self,
            predictions: Sequence[Sequence[float]],
            references: Sequence[Sequence[float]],
            num_folds: int = 5,
            seed: int = 0,
            alphas: Sequence[float] = ALPHAS,
        ) -> dict[str, Any]:
            scores = formulas.ridge_predictivity(
                predictions, references, num_folds=num_folds, seed=seed, alphas=alphas
            )
            return {"pearson": fmean(scores), "pearson_by_target": scores}

    return NeuralPredictivity


@functools.cache
def connectome_overlap() -> Any:
    """Build the class ConnectomeOverlap."""
    import datasets
    import evaluate

    class ConnectomeOverlap(evaluate.Measurement):  # type: ignore[misc]  # evaluate has no types
        """How alike connectomes are, beside what chance gives. In memory: ``a.overlap(b)``."""

        def _info(self) -> Any:
            return _info(
                "MeasurementInfo",
                "Jaccard index of the survivors of two connectomes and agreement of the signs of "
                "those they share, each beside its value by chance; means over pairs.",
                "    predictions: folder or Hub id of one connectome of each pair.\n"
                "    references: folder or Hub id of the other.\n",
                predictions=datasets.Value("string"),
                references=datasets.Value("string"),
            )

        def _compute(
            self, predictions: Sequence[str], references: Sequence[str]
        ) -> dict[str, float | None]:
            from hf_connectome.connectome import Connectome

            if not predictions:
                raise DataError("there is no pair of connectomes; expected one or more.")
            pairs = zip(predictions, references, strict=True)
            found = [
                Connectome.from_pretrained(one).overlap(Connectome.from_pretrained(other))
                for one, other in pairs
            ]
            measures = ("jaccard", "chance_jaccard", "sign_agreement", "chance_sign_agreement")
            means = {name: _mean([getattr(o, name) for o in found]) for name in measures}
            return means | {"num_shared": sum(o.num_shared for o in found), "num_pairs": len(found)}

    return ConnectomeOverlap


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean, None where one of the values is not defined (a connectome without signs)."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None
