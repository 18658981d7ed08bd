"""Generated from proto/skep/v1 by `make proto`; do not edit."""
