"""What can be measured on images: each metric a function that returns an ``intervals.Score``, with its protocol."""
