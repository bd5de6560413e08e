"""Guards: the tools that Keepa's users have, metered. One thin file each, importing what it guards."""
