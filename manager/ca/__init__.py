"""The cluster's certificate authority: join tokens, certificates, renewal."""
