"""Stages that take a query and its hits, and give better hits."""
