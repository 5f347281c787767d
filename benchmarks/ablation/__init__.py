"""Ablation: the same towers, data and steps with other ways of fusing; see `__main__`."""
