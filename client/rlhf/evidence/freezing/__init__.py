"""What freezing costs: one preference task and one RL task, with more and less of the model trained, LoRA heads, and all of it."""
