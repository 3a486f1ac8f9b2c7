"""Each measure of `polyhead bench`: what it runs, on our server and on a peer, and the rows that it makes of it."""
