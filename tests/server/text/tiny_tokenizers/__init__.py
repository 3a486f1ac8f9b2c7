"""Tokenizers of a few hundred tokens: families.py for text, chat_tokenizers.py with templates; pipelines.py is what both are made of."""
