"""Grids of runs: base model x concept x method x attack x seed, made cell by cell, cached by content, as tables."""
