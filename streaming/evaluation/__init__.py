"""Video files in, reports out: what `streamingt2v evaluate` does around the metrics of `streaming.metrics`.

`files` finds out what is asked, `equip` and `run` measure one file, `workers` several at once, `report*` tell it.
"""
