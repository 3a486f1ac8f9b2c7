"""A client of several servers that hold one history: a primary and its followers.

    fleet.py           Fleet and AsyncFleet: Client's methods, and pins
    routing.py         which replica answers which call, and which has the least to do
    attempts.py        when a call goes on at another replica
    delivery.py        what of a generation was delivered, and what is still to be asked for
    connection.py      calls over grpc's synchronous API
    aio_connection.py  the same, awaited
"""
