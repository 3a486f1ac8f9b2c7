"""HTTP, and the pages' own files in templates/, static/ and locales/.

app.py           the whole; announcing.py its start, metrics.py for Prometheus
access.py        who may call what; security.py headers and limits
pages.py         HTML; api.py JSON, streams.py events
state.py         what a browser may see; explaining.py a known answer in words
catalogs.py      texts by language
admin/           the team's pages
"""
