"""`make demo`: one round of RLHF on a real model, played as a client."""
