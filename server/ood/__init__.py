"""Out-of-distribution scores of prompts: the numbers, fits on disk and in memory."""
