"""What a head is: kinds, manifest, splitting and merging checkpoints, and the store that keeps versions. Knows nothing of serving."""
