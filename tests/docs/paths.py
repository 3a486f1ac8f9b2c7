"""Where the documents are."""

from tests.guards.tree import ROOT

DOCS = ROOT / "docs"
