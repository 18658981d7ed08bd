"""The skep command, one file a noun. Starts fast: nothing heavy is imported here."""
