"""Metrics as modules of Hugging Face's evaluate, by name; they load offline and run no script.

``load("bits_per_byte")`` in place of ``evaluate.load``; the numbers alone are in formulas.py.
"""

from __future__ import annotations

import importlib
from typing import Any

from hf_connectome.errors import UnknownNameError, did_you_mean

_CLASSES = {
    "bits_per_byte": "BitsPerByte",
    "connectome_overlap": "ConnectomeOverlap",
    "neural_predictivity": "NeuralPredictivity",
    "reading_time_correlation": "ReadingTimeCorrelation",
}
NAMES = tuple(_CLASSES)


def load(name: str, **options: Any) -> Any:
    """Return a new module of evaluate: ``compute``, ``add``, ``add_batch``, ``evaluate.combine``.

    Args:
        name: one of ``NAMES``.
        options: of every module of evaluate: ``num_process``, ``process_id``, ``experiment_id``,
            ``cache_dir``, ``keep_in_memory``, ``timeout``.

    Raises:
        UnknownNameError: no such metric.
        ConfigError: evaluate is not installed.
    """
    return metric_class(name)(**options)


def metric_class(name: str) -> Any:
    """Return the class of a metric.

    Raises:
        UnknownNameError: no such metric.
        ConfigError: evaluate is not installed.
    """
    if name not in _CLASSES:
        raise UnknownNameError(f"unknown metric {name!r}. {did_you_mean(name, NAMES)}")
    modules = importlib.import_module(f"{__name__}.modules")
    modules.require_evaluate()
    return getattr(modules, name)()


def __getattr__(name: str) -> Any:
    for metric, class_name in _CLASSES.items():
        if class_name == name:
            return metric_class(metric)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
