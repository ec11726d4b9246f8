"""Persistent data: rows in SQLite or PostgreSQL, arrays in files beside them.

Functions take a Connection of `database.Database` and never commit: the caller's `with database.begin() as conn` is the
transaction.
"""
