"""Users' intentions: validated, then one transaction on the store. Decides nothing about tasks."""
