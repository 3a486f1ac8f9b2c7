"""A server's life: its parts are put together, it starts, serves, drains and ends."""
