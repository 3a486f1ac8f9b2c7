"""Protobuf messages to dataclasses and back. Nothing behind this folder knows protobuf."""
