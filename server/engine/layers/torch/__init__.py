"""Our own layers in torch's calls, for every device and dtype."""
