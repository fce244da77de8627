"""Conformance checks for other people's plug-ins: criteria, wirings, controls, hosts and rewirings.

Each raises AssertionError with what is wrong, also under ``python -O``, and needs no test runner.
They ask for the contract alone; whether a criterion or a wiring is any good is not their question.
"""

from hf_connectome.testing.controls import check_control
from hf_connectome.testing.criteria import check_criterion, measured
from hf_connectome.testing.hosts import check_host
from hf_connectome.testing.rewirings import check_rewiring
from hf_connectome.testing.wirings import check_wiring

__all__ = [
    "check_control",
    "check_criterion",
    "check_host",
    "check_rewiring",
    "check_wiring",
    "measured",
]
