"""Pages of admins, and of adjudicators. They show heads and digests, so nobody who judges may take these routes.

page.py       what all share
projects.py   projects, rounds, reports
items.py      items, and files of them
people.py     people, invites, what they report
review.py     disagreements
exports.py    files for trainers
health.py     health, and the log
"""

from polyhead.client.annotate.web.admin import exports, health, items, people, projects, review

ROUTES = [*projects.ROUTES, *items.ROUTES, *people.ROUTES, *review.ROUTES, *exports.ROUTES, *health.ROUTES, *projects.LAST]
