"""HTTP: security.py headers and limits, access.py who may call what, pages.py HTML, api.py JSON, streams.py events, app.py the whole,
announcing.py its start."""
