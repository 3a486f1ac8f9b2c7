"""polyhead on Ray Serve: Ray places, restarts and scales servers; callers talk gRPC to the servers themselves (docs/guides/ray.md).

    places.py       a follower's store and port on a node
    scaling.py      how many followers the open requests ask for
    application.py  the two deployments: a primary, and the followers of it. Needs the extra `ray`

A replica's server is a `polyhead.client.local.LocalServer`.
"""
