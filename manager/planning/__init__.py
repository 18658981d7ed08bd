"""What would happen: the very same deciders on a copy of the state; and why something does not happen. Pure."""
