"""Keys, certificates, join tokens, TLS credentials."""
