"""Requests built before they are sent, and messages read when they come: no calls."""
