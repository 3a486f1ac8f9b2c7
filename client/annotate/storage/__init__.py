"""The file: database.py its transactions and its log of events, schema.sql the tables, migrations.py the way from older ones."""
