"""`make rlhf-evidence`: the demonstration's arms over several seeds, a result file for each run, and a page with intervals from them."""
