"""What the team sees: how a project goes, what its answers are worth, who works in it. Knows heads and digests; no page of people who judge
imports from here.

    tables.py        a table as pages and CSV files show it
    progress.py      how much is done, and what was left out of it, by reason
    agreement.py     do people agree?
    bias.py          do slots, lengths and languages decide?
    strengths.py     which head is better, and how sure is that?
    people.py        who works how much; habits.py like whom, in what place, how fast; invites
    messages.py      words to one person
    reports.py       what people wanted somebody to look at
    rounds.py        projects' states and rounds; what is served now against what was served then
    items.py         items: found, looked at, retired, given a known answer
    log.py           the log of events
    health.py        the model server, disk, backups, failures
    adjudication.py  a second look at what people disagree about
"""
