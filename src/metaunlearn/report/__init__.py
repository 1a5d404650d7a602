"""Results in a folder → one self-contained HTML page, and the same facts as plain data for the command line."""
