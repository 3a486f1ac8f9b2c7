"""The data-collection frontend: people compare, rank, rate and attack the live heads, and their answers train the next ones.

An application over the public `polyhead.client`: one process, one event loop, one SQLite file.

    commands.py      `polyhead annotate`
    config.py        a project's YAML
    database.py      the file, its transactions and its log of events; schema.sql has the tables, migrations.py the way from older ones
    accounts.py      people, invites, sign-in codes, sessions
    projects.py      versions of projects, rounds
    imports.py       items from files; storing.py stores them; gold.py known answers
    assignments.py   who works on what: leases, skips, releases
    dialogues.py     turns, candidates, views: what was shown to whom, in which order
    drawing.py       replies from polyhead; turns.py runs one draw a turn and tells the pages
    revealing.py     what a page may see of replies while they are written
    bodies.py        what an answer of each kind must hold; answers.py stores it
    state.py         what a browser may see
    admin/           what the team sees: progress, agreement, bias, strengths, people, rounds, items, adjudication, the log, health
    care/            caps, breaks, pauses, stopping, erasure, a person's own data
    keeping/         backups, rebuilding the tables from the log, checks
    statistics/      agreement, intervals, strengths: pure functions
    exports/         files for trainers
    metrics.py       for Prometheus
    web/             HTTP: security, pages, JSON routes, event streams; admin/ the team's pages
"""
