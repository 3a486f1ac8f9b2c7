"""What the client answers with: dataclasses, padded batches, blind comparisons. Knows no protobuf."""
