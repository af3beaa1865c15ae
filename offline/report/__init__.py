"""`pika report`: one folder of figures, tables and pages from what `pika evaluate` found."""
