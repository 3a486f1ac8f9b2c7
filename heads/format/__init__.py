"""What both sides know of a head file: kinds, manifest, LoRA configuration, safetensors header, errors. Standard library only."""
