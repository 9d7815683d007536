"""Text to token ids and masks, under a written contract."""
