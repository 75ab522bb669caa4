"""SQL: tables, queries, schema, transactions."""
