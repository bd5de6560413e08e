"""Keeps a bucket in step with the balance that Keepa reports."""
