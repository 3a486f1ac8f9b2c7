"""polyhead on Ray Serve: Ray places, restarts and scales servers; callers talk gRPC to the servers themselves (docs/guides/ray.md).

    process.py      one `polyhead serve` that a replica starts and looks after
    scaling.py      how many followers the open requests ask for
    application.py  the two deployments: a primary, and the followers of it. Needs the extra `ray`
"""
