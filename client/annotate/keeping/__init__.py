"""The database is kept: backup.py copies and restores it, rebuild.py makes its tables from the log, verify.py checks it.

versions.py has the model server keep the head versions that stored replies came from.
"""
