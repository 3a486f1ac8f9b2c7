"""Work, and who gets it.

imports.py        items from files; storing.py stores them
gold.py           items with known answers
assignments.py    who works on what: leases, skips, releases
counting.py       how much of the open rounds is done
"""
