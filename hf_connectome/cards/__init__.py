"""The model card: generated from the connectome, its run and its results; never from guesses."""

from hf_connectome.cards.compose import card, checkpoint_card
from hf_connectome.cards.results import Results, eval_results, read_results
from hf_connectome.cards.writing import CARD_FILE, FIGURE_FILE, write_card, write_checkpoint_card

__all__ = [
    "CARD_FILE",
    "FIGURE_FILE",
    "Results",
    "card",
    "checkpoint_card",
    "eval_results",
    "read_results",
    "write_card",
    "write_checkpoint_card",
]
