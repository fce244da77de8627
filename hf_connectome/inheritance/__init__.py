"""The inner loop: arms that differ only in what a fresh host inherits, trained side by side.

All arms of a seed start from the same fresh host and see the same data in the same order. What is
measured here is compared in evaluation/paired.py.
"""

from hf_connectome.inheritance.arguments import EXTENDING, InheritanceArguments, reset_of
from hf_connectome.inheritance.results import stored_result, stored_results
from hf_connectome.inheritance.training import (
    REWIRED_FOLDER,
    check_arms,
    check_vocabulary,
    start_of,
    train_arm,
    train_arms,
)

__all__ = [
    "EXTENDING",
    "REWIRED_FOLDER",
    "InheritanceArguments",
    "check_arms",
    "check_vocabulary",
    "reset_of",
    "start_of",
    "stored_result",
    "stored_results",
    "train_arm",
    "train_arms",
]
