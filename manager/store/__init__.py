"""The replicated state: tables, indexes, transactions, watch, snapshot. Pure: apply is a function of the log."""
