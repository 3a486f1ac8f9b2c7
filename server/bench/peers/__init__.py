"""One module an engine, run by that engine's own Python: main.py is the program, and no module here imports another or any of ours but on_engine."""
