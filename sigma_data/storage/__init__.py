"""Files wherever they lie: on this machine or in an object store, by their exact names."""
