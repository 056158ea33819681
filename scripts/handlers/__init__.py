"""Ignite handlers of the workflows: checkpoints, weights, batch norm, the evaluation's report."""
