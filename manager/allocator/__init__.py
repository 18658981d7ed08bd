"""What a task needs from the cluster before it can be placed: addresses, ports. Pure."""
