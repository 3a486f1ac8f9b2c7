"""Numbers about judgements, as pure functions: agreement.py, intervals.py, strength.py. Nothing here knows the database or a page."""
