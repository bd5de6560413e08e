"""Guards: they meter the HTTP clients and task queues that Keepa's users have. One thin file for each."""
