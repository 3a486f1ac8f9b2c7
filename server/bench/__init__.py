"""`polyhead bench`: measures the goals side by side with other engines. An outermost layer, as a user's own program is."""
