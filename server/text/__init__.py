"""Text and token ids: the tokenizer, transcript formats, and whether a reply is well formed."""
