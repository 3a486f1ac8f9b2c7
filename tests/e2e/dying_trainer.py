"""A trainer that is killed when its push is done: `dying_trainer ADDRESS WEIGHTS.safetensors`."""

from __future__ import annotations

import os
import signal
import sys

from safetensors.numpy import load_file

from polyhead.client import Client

if __name__ == "__main__":
    with Client(sys.argv[1]) as trainer:
        trainer.push_head("policy", load_file(sys.argv[2]))
        os.kill(os.getpid(), signal.SIGKILL)
