"""Decisions, outcomes, budgets and sessions in one database. Imports nothing else of `server`: `offline` reads it."""
