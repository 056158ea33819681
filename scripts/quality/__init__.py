"""How far a result can be trusted: predicted Dice, calibrated probabilities, flags in words."""
