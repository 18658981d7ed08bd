"""Users' intentions: validation, then a store transaction."""
