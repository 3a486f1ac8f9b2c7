"""The data-collection frontend: people compare, rank, rate and attack the live heads, and their answers train the next ones.

An application over the public `polyhead.client`: one process, one event loop, one SQLite file. Each imports from those above it alone:

    problems.py      what goes wrong in a request
    storage/         the file, its log of events
    projects/        what is asked
    terminal.py      what commands share
    people/          who answers; caps, breaks, pauses, erasure
    replies/         what is judged: dialogues, replies from polyhead
    items/           work, and who gets it
    answers/         what people say
    statistics/      agreement, intervals, strengths: pure functions
    exports/         files for trainers
    keeping/         backups, rebuilding the tables from the log, checks
    admin/           what the team sees
    web/             HTTP and the pages
    commands.py      `polyhead annotate`
    trial.py         `make annotate`
"""
