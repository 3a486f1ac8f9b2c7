"""`polyhead bench`: measures the goals side by side with other engines. An outermost layer, as a user's own program is.

    command.py       flags in, tables out
    plan.py          what was asked of a run, and how large the work is
    runner.py        one measure after the other, into a file
    interrupt.py     how Ctrl-C ends it
    session.py       what a run holds open: our servers, the peers' workers
    ours.py          our server, through the public client
    worker.py        a peer's process; peers/ has one module an engine, environments.py installs them
    work.py          prompts of exact length, cut from prose.txt
    load.py          streams in the background that note when each token came
    results.py       series, rows, goals
    plot.py          curves as SVG
    report.py        rows as text, Markdown and JSON
    measures/        one file for each story:
        decoding.py      P1 to P3, P8
        experience.py    P4
        scoring.py       P5, P6, P11
        swapping.py      P7, P9, P10
        overload.py      P12
        quality.py       what lower precision costs
        fleet.py         one, two and three processes, and an update of all of them
        growth.py        time and memory against heads, context, streams, rules
        soak.py          minutes of mixed load
    gpu/             `polyhead bench-gpu`
"""
