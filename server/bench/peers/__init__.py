"""One module an engine, run by that engine's own Python; main.py is the program. None imports another, and on_engine alone any of ours."""
