"""Who answers, and care for them.

accounts.py    people, invites, sign-in codes, sessions
limits.py      caps and breaks
warning.py     examples of answers that differ from known ones; pausing.py what follows if that does not help
messages.py    words of the team to somebody
erasure.py     stopping and erasing; own_data.py what is stored of somebody
"""
