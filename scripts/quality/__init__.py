"""Reliability of a result: predicted Dice, calibrated probabilities, flags in words."""
