"""What is judged.

candidates.py    a reply as a row
dialogues.py     turns, views: what was shown to whom, in which order
drawing.py       replies from polyhead; turns.py runs one draw a turn and tells the pages
user_turns.py    what the user says where no person here writes it
scoring.py       scores of replies that people wrote
checking.py      whether a server has what a project names
revealing.py     what a page may see of replies while they are written
"""
