"""Which machine a task goes to: filters, spread, explanations. Pure."""
