"""The wire: what every call passes on its way in and out, before and behind the services."""
