"""Files for trainers.

judgements.py    what was judged, at one point of the log
comparable.py    answers about the same thing, made comparable
adjudicated.py   an adjudicator's decisions as judgements
options.py       what somebody asks for, checked
chosen.py        which judgements go out
pairs.py         preferences in a judgement
formats.py       rows of each format; tools.py those of other tools
writing.py       the files
commands.py      `polyhead annotate export`
"""
