"""What a criterion may know beside the weights, measured on a few batches or over a training.

Not here: how a statistic becomes a score (criteria/), nor what is done with it (evolution.py).
"""

from hf_connectome.calibration.calibrator import Calibrator
from hf_connectome.calibration.measuring import check_needs, measure, model_loss
from hf_connectome.calibration.movement import MovementSums

__all__ = ["Calibrator", "MovementSums", "check_needs", "measure", "model_loss"]
