"""Where the state of buckets lives."""
