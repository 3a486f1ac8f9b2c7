"""Tokenizers of a few hundred tokens: families.py for text, chat.py with chat templates; pipelines.py has what both are made of."""
