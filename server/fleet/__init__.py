"""Several servers with one history: a primary numbers everything, followers copy its records and serve the same heads.

At the primary, imported when the first follower comes:
    primary.py     what a follower's call becomes; the consent that activations wait for
    members.py     who follows, how each stands, who is lost
    catalogue.py   what a follower lacks, the most urgent first
    session.py     one follower's stream: one task after the other, each answered
    rounds.py      before an activation: the replicas load it, or nothing changes
At a follower, imported by `serve --follow`:
    following.py   the stream to the primary, again and again; what health says of it
    tasks.py       how each task is carried out
"""
