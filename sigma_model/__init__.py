"""The network: one visibility rule, two experts, released weights computed exactly."""
