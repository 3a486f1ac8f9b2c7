"""One module an engine, run by that engine's own Python; main.py is the program. None imports another.

Two run by our own Python import what is ours: on_engine, and on_trainer, which is no peer but a user of our server.
"""
