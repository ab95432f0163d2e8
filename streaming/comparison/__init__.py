"""Evaluations of the same prompts, compared: what `streamingt2v compare` does with `streaming.metrics.paired`.

`read` takes in what `evaluate` wrote and pairs the videos, `settings` finds what was measured differently, `compared`
computes and `report` tells it.
"""
