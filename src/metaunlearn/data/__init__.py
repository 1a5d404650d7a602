"""Images with captions, and prompts, from files."""
