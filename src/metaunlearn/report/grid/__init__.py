"""The page of a bench: what a grid found, as far as it is measured."""
