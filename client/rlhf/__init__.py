"""`make rlhf`: the whole loop on a real model, with two judges in place of people."""
